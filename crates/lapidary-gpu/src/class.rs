//! Kinds of engine.

use std::fmt;

/// What an engine can do; commands decode differently between classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineClass {
    /// 3D, compute and transfer.
    Render,
    /// Copy engine: the blitter's commands.
    Copy,
    /// Video decode and encode.
    VideoDecode,
    /// Video post-processing.
    VideoEnhance,
    /// Compute and transfer.
    Compute,
}

impl fmt::Display for EngineClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Render => "render",
            Self::Copy => "copy",
            Self::VideoDecode => "video decode",
            Self::VideoEnhance => "video enhance",
            Self::Compute => "compute",
        })
    }
}
