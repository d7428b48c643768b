//! The blitter: fills and copies of linear and tiled surfaces.
