//! Netlink's framing: messages in a datagram, attributes in a message (netlink(7), `linux/netlink.h`).

use std::net::IpAddr;

/// Bytes of a netlink header.
pub(super) const HEADER: usize = 16;

/// `NLMSG_ERROR`, also an acknowledgement.
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`.
pub(super) const DONE: u16 = 3;

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(super) const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: the table changed during the dump.
pub(super) const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_REPLACE`.
pub(super) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_DUMP`.
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;

/// The text of an extended acknowledgement.
pub(super) const NLMSGERR_ATTR_MSG: u16 = 1;

const TYPE_MASK: u16 = 0x3fff;

/// One message of a datagram.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// The netlink port of whoever caused it; 0 is the kernel itself.
    pub port: u32,
    pub payload: &'a [u8],
}

/// The messages of a datagram; what does not frame ends the walk.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let message = rest.get(..length).filter(|m| m.len() >= HEADER)?;
        rest = rest.get(align(length)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            port: u32_at(message, 12)?,
            payload: &message[HEADER..],
        })
    })
}

/// Appends one message.
pub(super) fn put_message(into: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
    into.extend(length.to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(flags.to_ne_bytes());
    into.extend(sequence.to_ne_bytes());
    into.extend(0_u32.to_ne_bytes());
    into.extend(payload);
    into.resize(align(into.len()), 0);
}

/// Type and value of each attribute; what does not frame ends the walk.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(k, value)| (k == kind).then_some(value))
}

/// Appends an attribute.
pub(super) fn put(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    into.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(value);
    into.resize(align(into.len()), 0);
}

/// Appends a text attribute with its closing zero.
pub(super) fn put_text(into: &mut Vec<u8>, kind: u16, value: &str) {
    put(into, kind, &[value.as_bytes(), &[0]].concat());
}

/// A text attribute without its closing zero.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The bytes of an address, in the network's order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A number in the host's order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A signed number in the host's order.
pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A number in the network's order.
pub(super) fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// A number in the network's order.
pub(super) fn be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written_and_rubbish_ends_the_walk() {
        let mut bytes = Vec::new();
        put_text(&mut bytes, 7, "abc");
        put(&mut bytes, 8, &[1, 2]);
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(7, &b"abc\0"[..]), (8, &[1, 2][..])]);
        assert_eq!(text(find(&bytes, 7).unwrap()), "abc");
        for cut in 0..bytes.len() {
            assert!(attributes(&bytes[..cut]).count() < 2 || cut > 8);
        }
        assert_eq!(attributes(&[0, 0, 0, 0, 9]).count(), 0);
    }

    #[test]
    fn messages_of_any_bytes_end() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, 5, 1, 9, &[1, 2, 3]);
        put_message(&mut bytes, 6, 1, 10, &[]);
        assert_eq!(messages(&bytes).map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(5, 9), (6, 10)]);
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(messages(&[255; 64]).count(), 0);
    }
}
