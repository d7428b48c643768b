//! Names of descriptors: abstract socket addresses of the form `\0lapidary:SERVER:NUMBER:TEXT`.
//!
//! `SERVER` and `NUMBER` make the address unique; `TEXT` is what `/proc/self/fd/N` shows for the descriptor on a real
//! system: `/dev/dri/renderD128`, `anon_inode:sync_file`. Anybody may bind such a name: it is good for
//! showing, and proves nothing.

/// How every name begins.
pub const PREFIX: &[u8] = b"\0lapidary:";

/// The text of a name, if the address is one.
pub fn text(address: &[u8]) -> Option<&[u8]> {
    let rest = address.strip_prefix(PREFIX)?;
    let mut fields = rest.splitn(3, |byte| *byte == b':');
    fields.next()?;
    fields.next()?;
    fields.next().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_follows_the_second_colon() {
        assert_eq!(text(b"\0lapidary:ab12:7:anon_inode:sync_file"), Some(&b"anon_inode:sync_file"[..]));
        assert_eq!(text(b"\0lapidary:ab12:7:/dev/dri/card0"), Some(&b"/dev/dri/card0"[..]));
        assert_eq!(text(b"\0lapidary:ab12:7:"), None);
        assert_eq!(text(b"\0other:ab12:7:x"), None);
        assert_eq!(text(b"/run/socket"), None);
    }
}
