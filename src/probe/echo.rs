//! Echo packets: ICMP, `ICMPv6`, and UDP (RFC 862). Pure.

use crate::units::Family;

/// An answer without the parts that the socket already checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Sequence number.
    pub sequence: u16,
    /// The random number that only who saw the request can know.
    pub nonce: u64,
}

/// Bytes of the header before the payload.
const HEADER: usize = 8;

/// Writes an echo request (RFC 792; RFC 4443, section 4.1) with `size` bytes of payload, at least the nonce's eight.
pub fn request(family: Family, ident: u16, reply: Reply, size: u16, packet: &mut Vec<u8>) {
    packet.clear();
    packet.extend([if family == Family::V4 { 8 } else { 128 }, 0, 0, 0]);
    packet.extend(ident.to_be_bytes());
    packet.extend(reply.sequence.to_be_bytes());
    packet.extend(reply.nonce.to_be_bytes());
    packet.resize(HEADER + usize::from(size.max(8)), 0);
    // The kernel sums ICMPv6 packets of raw sockets itself (RFC 3542, section 3.1).
    if family == Family::V4 {
        let sum = checksum(packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Reads an echo reply with our identifier; anything else is none. A raw IPv4 socket hands out the IP header too.
#[must_use]
pub fn reply(family: Family, ident: u16, packet: &[u8]) -> Option<Reply> {
    let (packet, kind) = match family {
        Family::V4 => (packet.get(usize::from(packet.first()? & 0x0f) * 4..)?, 0),
        Family::V6 => (packet, 129),
    };
    let head: &[u8; HEADER + 8] = packet.first_chunk()?;
    let ours = head[0] == kind && head[1] == 0 && head[4..6] == ident.to_be_bytes();
    let nonce = u64::from_be_bytes(*head.last_chunk()?);
    ours.then_some(Reply { sequence: u16::from_be_bytes([head[6], head[7]]), nonce })
}

/// Writes the payload of a UDP echo, `size` bytes and at least ten: number and nonce. The service sends it back as it is.
pub fn datagram(reply: Reply, size: u16, packet: &mut Vec<u8>) {
    packet.clear();
    packet.extend(reply.nonce.to_be_bytes());
    packet.extend(reply.sequence.to_be_bytes());
    packet.resize(usize::from(size.max(10)), 0);
}

/// Reads a UDP echo.
#[must_use]
pub fn echoed(packet: &[u8]) -> Option<Reply> {
    let (nonce, rest) = packet.split_first_chunk()?;
    Some(Reply { nonce: u64::from_be_bytes(*nonce), sequence: u16::from_be_bytes(*rest.first_chunk()?) })
}

/// The Internet checksum (RFC 1071) of a packet whose checksum field is zero.
fn checksum(packet: &[u8]) -> u16 {
    let word = |pair: &[u8]| (u32::from(pair[0]) << 8) | pair.get(1).copied().map_or(0, u32::from);
    let sum: u32 = packet.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    // Two folds of a 32-bit sum leave 16 bits.
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: Reply = Reply { sequence: 0x1234, nonce: 0x0123_4567_89ab_cdef };

    #[test]
    fn a_request_has_the_form_and_the_sum_of_rfc_792() {
        let mut packet = Vec::new();
        for size in [0, 16, 17, 1400, 65_000] {
            request(Family::V4, 0xbeef, REPLY, size, &mut packet);
            assert_eq!(packet.len(), 8 + usize::from(size.max(8)));
            assert_eq!(packet[..2], [8, 0]);
            assert_eq!(checksum(&packet), 0, "the sum over all with the sum is zero");
        }
        request(Family::V6, 0xbeef, REPLY, 16, &mut packet);
        assert_eq!(packet[..4], [128, 0, 0, 0]);
    }

    #[test]
    fn a_reply_is_read_back_and_nothing_else_is() {
        let mut packet = Vec::new();
        request(Family::V6, 0xbeef, REPLY, 16, &mut packet);
        assert_eq!(reply(Family::V6, 0xbeef, &packet), None, "our own request");
        packet[0] = 129;
        assert_eq!(reply(Family::V6, 0xbeef, &packet), Some(REPLY));
        assert_eq!(reply(Family::V6, 0xbee0, &packet), None);
        assert_eq!(reply(Family::V6, 0xbeef, &packet[..15]), None);
        packet[0] = 0;
        let ip: Vec<u8> = [0x46].into_iter().chain([0; 23]).chain(packet).collect();
        assert_eq!(reply(Family::V4, 0xbeef, &ip), Some(REPLY));
        for cut in 0..40 {
            assert_eq!(reply(Family::V4, 0xbeef, &ip[..cut]), None);
        }
    }

    #[test]
    fn a_udp_echo_is_read_back() {
        let mut packet = Vec::new();
        for size in [0, 16, 1452] {
            datagram(REPLY, size, &mut packet);
            assert_eq!((packet.len(), echoed(&packet)), (usize::from(size.max(10)), Some(REPLY)));
        }
        assert_eq!(echoed(&packet[..9]), None);
    }
}
