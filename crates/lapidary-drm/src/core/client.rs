//! What an onlooker may know of a client: one record per open DRM file.

use serde::Serialize;

use super::file::Node;

/// One open DRM file, for statistics.
#[derive(Clone, Debug, Serialize)]
pub struct ClientRecord {
    /// The file's number.
    pub client: u64,
    /// The process that opened it.
    pub pid: u32,
    /// That process's command name.
    pub process: String,
    /// The node it was opened through.
    pub node: NodeName,
    /// The name the client gave itself.
    pub name: Option<String>,
    /// DRM ioctls so far.
    pub ioctls: u64,
    /// Open buffer handles.
    pub buffers: u64,
    /// Bytes of the buffers behind them, each counted once.
    pub buffer_bytes: u64,
    /// Open syncobj handles.
    pub syncobjs: u64,
}

/// A node's kind, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeName {
    /// `cardN`.
    Primary,
    /// `renderDN`.
    Render,
}

impl From<Node> for NodeName {
    fn from(node: Node) -> Self {
        match node {
            Node::Primary => Self::Primary,
            Node::Render => Self::Render,
        }
    }
}
