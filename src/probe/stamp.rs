//! The packets of STAMP (RFC 8762) in unauthenticated mode, and what can be learned from them. Pure.
//!
//! Invariant: an answer is recognised by the 64 bits of the sender's timestamp, which it repeats and whose lowest 16
//! bits (15 us) are random. A delay of one direction is told only if both ends say that their clocks are synchronised.

use std::time::Duration;

use super::echo::Reply;
use crate::health::OneWay;

/// Length of both packets without padding.
pub const LENGTH: usize = 44;
/// Length of a reflector's packet up to the end of what it repeats. TWAMP Light reflectors (RFC 8762, section 4.6) send
/// little more, and some nothing.
const REPEATED: usize = 38;
/// Seconds from 1900, where NTP begins to count, to 1970.
const UNIX: i64 = 2_208_988_800;
/// Bits of the error estimate (RFC 4656, section 4.1.2; RFC 8762, section 4.2.1).
const SYNCHRONISED: u16 = 1 << 15;
const PTP: u16 = 1 << 14;
/// Scale 21 and multiplier 2: 2 x 2^21 / 2^32 s, about 1 ms; what NTP can promise over a WAN.
const ERROR: u16 = (21 << 8) | 2;

/// What this end says of its clock.
#[must_use]
pub const fn error_estimate(synchronised: bool) -> u16 {
    if synchronised { SYNCHRONISED | ERROR } else { ERROR }
}

/// A moment of the wall clock in microseconds as an NTP timestamp.
#[must_use]
pub fn timestamp(wall: i64) -> u64 {
    let seconds = u64::try_from(wall.div_euclid(1_000_000) + UNIX).unwrap_or_default();
    let micros = u64::try_from(wall.rem_euclid(1_000_000)).unwrap_or_default();
    (seconds << 32) | ((micros << 32) / 1_000_000)
}

/// A timestamp in microseconds of the wall clock. NTP counts anew in 2036; this reads until 2104.
fn micros(timestamp: u64, estimate: u16) -> i64 {
    let (seconds, fraction) = ((timestamp >> 32).cast_signed(), timestamp & 0xffff_ffff);
    if estimate & PTP != 0 {
        return seconds * 1_000_000 + (fraction / 1_000).cast_signed();
    }
    let era = if seconds < UNIX { 1 << 32 } else { 0 };
    (seconds + era - UNIX) * 1_000_000 + ((fraction * 1_000_000) >> 32).cast_signed()
}

/// Writes a sender's packet. The nonce of `reply` is its timestamp.
pub fn request(reply: Reply, synchronised: bool, packet: &mut Vec<u8>) {
    packet.clear();
    packet.extend(u32::from(reply.sequence).to_be_bytes());
    packet.extend(reply.nonce.to_be_bytes());
    packet.extend(error_estimate(synchronised).to_be_bytes());
    packet.resize(LENGTH, 0);
}

/// What a reflector says beside the echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reflection {
    /// When it received the packet, in microseconds of its wall clock.
    pub received: i64,
    /// When it sent its answer.
    pub sent: i64,
    /// Whether it says that its clock is synchronised.
    pub synchronised: bool,
}

impl Reflection {
    /// How long the reflector kept the packet.
    #[must_use]
    pub fn kept(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.sent - self.received).unwrap_or_default())
    }

    /// The delays of both directions, if both clocks are synchronised and neither came out below zero.
    #[must_use]
    pub fn one_way(&self, sent: i64, arrived: i64, synchronised: bool) -> Option<OneWay> {
        let gap = |from: i64, to: i64| u64::try_from(to - from).ok().map(Duration::from_micros);
        let both = synchronised && self.synchronised;
        let (there, back) = (gap(sent, self.received)?, gap(self.sent, arrived)?);
        both.then_some(OneWay { there, back })
    }
}

/// Reads a reflector's packet; a longer one carries extensions (RFC 8972) that are of no use here.
#[must_use]
pub fn reply(packet: &[u8]) -> Option<(Reply, Reflection)> {
    let packet: &[u8; REPEATED] = packet.first_chunk()?;
    let estimate = u16::from_be_bytes([packet[12], packet[13]]);
    let reflection = Reflection {
        received: micros(long(packet, 16), estimate),
        sent: micros(long(packet, 4), estimate),
        synchronised: estimate & SYNCHRONISED != 0,
    };
    // Of the 32 bits of the number we sent 16.
    let sequence = u16::from_be_bytes([packet[26], packet[27]]);
    let ours = packet[24..26] == [0, 0];
    ours.then_some((Reply { sequence, nonce: long(packet, 28) }, reflection))
}

/// When a packet was received and is answered, and the clock's estimate.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Reception, in microseconds of the wall clock.
    pub received: i64,
    /// Now.
    pub sent: i64,
    /// See [`error_estimate`].
    pub synchronised: bool,
}

/// Makes a sender's packet the stateless reflector's answer to it (RFC 8762, section 4.3), as long as it was; whether
/// it is one.
#[must_use]
pub fn reflect(packet: &mut [u8], clock: Clock, ttl: u8) -> bool {
    let Some(head) = packet.first_chunk_mut::<LENGTH>() else { return false };
    let question: [u8; 14] = *head.first_chunk().unwrap_or(&[0; 14]);
    head[4..12].copy_from_slice(&timestamp(clock.sent).to_be_bytes());
    head[12..14].copy_from_slice(&error_estimate(clock.synchronised).to_be_bytes());
    // Between them the sender's session number (RFC 8972) is kept.
    head[16..24].copy_from_slice(&timestamp(clock.received).to_be_bytes());
    head[24..38].copy_from_slice(&question);
    head[38..44].copy_from_slice(&[0, 0, ttl, 0, 0, 0]);
    true
}

fn long(packet: &[u8; REPEATED], at: usize) -> u64 {
    packet[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-02 03:04:05.25 UTC.
    const WALL: i64 = 1_767_323_045_250_000;
    const NTP: u64 = (1_767_323_045 + 2_208_988_800) << 32 | 0x4000_0000;

    #[test]
    fn timestamps_are_those_of_ntp_and_come_back() {
        assert_eq!(timestamp(WALL), NTP);
        assert_eq!(timestamp(0), 2_208_988_800 << 32);
        for wall in [0, WALL, WALL + 1, WALL + 999_999, 4_102_444_800_000_000] {
            assert!((micros(timestamp(wall), 0) - wall).abs() <= 1, "{wall}");
        }
        assert_eq!(micros((1_767_323_045 << 32) + 250_000_000, PTP), WALL, "PTP counts nanoseconds");
    }

    #[test]
    fn a_sender_s_packet_has_the_layout_of_rfc_8762_section_4_2_1() {
        let mut packet = Vec::new();
        request(Reply { sequence: 0x0102, nonce: NTP }, true, &mut packet);
        let mut expected = vec![0, 0, 1, 2];
        expected.extend(NTP.to_be_bytes());
        expected.extend([0b1001_0101, 2]);
        expected.resize(44, 0);
        assert_eq!(packet, expected);
        request(Reply { sequence: 0, nonce: NTP }, false, &mut packet);
        assert_eq!(packet[12..14], [0b0001_0101, 2], "S is the first bit");
    }

    #[test]
    fn a_reflector_s_packet_has_the_layout_of_rfc_8762_section_4_3_1() {
        let mut packet = Vec::new();
        request(Reply { sequence: 7, nonce: NTP }, false, &mut packet);
        packet.extend([9; 6]);
        let clock = Clock { received: WALL + 1_000, sent: WALL + 3_000, synchronised: true };
        assert!(reflect(&mut packet, clock, 61));
        assert_eq!(packet[0..4], [0, 0, 0, 7], "a stateless reflector repeats the number");
        assert_eq!(packet[4..12], timestamp(WALL + 3_000).to_be_bytes());
        assert_eq!(packet[12..14], [0b1001_0101, 2]);
        assert_eq!(packet[14..16], [0, 0]);
        assert_eq!(packet[16..24], timestamp(WALL + 1_000).to_be_bytes());
        assert_eq!(packet[24..28], [0, 0, 0, 7]);
        assert_eq!(packet[28..36], NTP.to_be_bytes());
        assert_eq!(packet[36..38], [0b0001_0101, 2], "the sender's own estimate");
        assert_eq!(packet[38..44], [0, 0, 61, 0, 0, 0]);
        assert_eq!(packet[44..], [9; 6], "as long as it was, padding and extensions too");
        assert!(!reflect(&mut [0; 43], clock, 61));
    }

    #[test]
    fn delays_of_one_way_need_both_clocks() {
        let mut packet = Vec::new();
        let asked = Reply { sequence: 7, nonce: NTP | 0xbeef };
        request(asked, true, &mut packet);
        let clock = |synchronised| Clock { received: WALL + 1_000, sent: WALL + 3_000, synchronised };
        let _ = reflect(&mut packet, clock(true), 61);
        let (found, reflection) = reply(&packet).unwrap();
        assert_eq!((found, reflection.kept()), (asked, Duration::from_millis(2)));
        let ms = Duration::from_millis;
        let told = reflection.one_way(WALL, WALL + 7_000, true);
        let near = |a: Duration, b| a.abs_diff(b) <= Duration::from_micros(2);
        assert!(told.is_some_and(|w| near(w.there, ms(1)) && near(w.back, ms(4))), "{told:?}");
        assert_eq!(reflection.one_way(WALL, WALL + 7_000, false), None);
        assert_eq!(reflection.one_way(WALL + 5_000, WALL + 7_000, true), None, "clocks that disagree");
        request(asked, true, &mut packet);
        let _ = reflect(&mut packet, clock(false), 61);
        assert_eq!(reply(&packet).unwrap().1.one_way(WALL, WALL + 7_000, true), None);
    }

    #[test]
    fn other_packets_are_no_replies() {
        for length in 0..REPEATED {
            assert!(reply(&[0; 64][..length]).is_none());
        }
    }

    #[test]
    fn the_answer_of_a_twamp_light_reflector_will_do() {
        // As twampy's responder sent it, without a TTL.
        let packet = [
            &[0, 0, 0, 7, 0xee, 0xb1, 0x81, 0xf4, 0xe4, 0x17, 0x57, 0xff, 0, 1, 0, 0][..],
            &[0xee, 0xb1, 0x81, 0xf4, 0xe4, 0x17, 0x57, 0xff],
            &[0, 0, 0, 8, 0xee, 0xb1, 0x81, 0xf4, 0xe3, 0xff, 0x7e, 0xb9, 0x15, 2],
        ]
        .concat();
        let (found, reflection) = reply(&packet).unwrap();
        assert_eq!(found, Reply { sequence: 8, nonce: 0xeeb1_81f4_e3ff_7eb9 });
        assert_eq!((reflection.kept(), reflection.synchronised), (Duration::ZERO, false));
    }
}
