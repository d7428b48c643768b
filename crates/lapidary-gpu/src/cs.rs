//! The command streamer: decodes a context's batches and executes their memory commands.
