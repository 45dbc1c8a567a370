//! Host keys of ssh against a `known_hosts` file, as `sshd(8)` describes it.
//!
//! Keys are compared as bytes, so that every type works that the other end may have.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use super::error::{GitError, Reason};

/// A line of the file that is about the host.
struct Known<'a> {
    line: usize,
    revoked: bool,
    kind: &'a str,
    key: Vec<u8>,
}

/// Whether the key that a host showed is one that the file has for it.
pub(super) fn check(file: &str, text: &str, host: &str, port: u16, shown: &[u8]) -> Result<(), GitError> {
    let known: Vec<Known<'_>> =
        text.lines().enumerate().filter_map(|(number, line)| entry(number + 1, line, host, port)).collect();
    let place = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
    let fingerprint = fingerprint(shown);
    if let Some(line) = known.iter().find(|k| k.revoked && k.key == shown) {
        let message = format!("the key {fingerprint} of {place} is marked as revoked in {file}:{}", line.line);
        return Err(GitError::new(Reason::HostKey, message, "find out who answers there before anything else"));
    }
    if known.iter().any(|k| !k.revoked && k.key == shown) {
        return Ok(());
    }
    let kind = kind(shown);
    let port_flag = if port == 22 { String::new() } else { format!("-p {port} ") };
    let scan = format!("`ssh-keyscan {port_flag}-t {} {host}`", kind.trim_start_matches("ssh-"));
    let same = known.iter().find(|k| !k.revoked && k.kind == kind);
    Err(if let Some(same) = same {
        let wanted = self::fingerprint(&same.key);
        let message = format!(
            "the host key of {place} has changed: it shows {fingerprint}, and {file}:{} has {wanted}",
            same.line
        );
        let remedy = format!("ask its operator whether that is right; if so, replace the line by what {scan} prints");
        GitError::new(Reason::HostKey, message, remedy)
    } else if known.iter().any(|k| !k.revoked) {
        let message =
            format!("{place} shows a key of type {kind}, {fingerprint}; {file} has others of it, none of this type");
        GitError::new(Reason::HostKey, message, format!("compare it with its operator's, then add what {scan} prints"))
    } else {
        let message = format!("{place} is not in {file}; it shows the key {fingerprint}");
        GitError::new(Reason::HostKey, message, format!("compare it with its operator's, then add what {scan} prints"))
    })
}

/// The line as an entry, if it is about this host.
fn entry<'a>(number: usize, line: &'a str, host: &str, port: u16) -> Option<Known<'a>> {
    let line = line.trim();
    let mut words = line.split_ascii_whitespace().peekable();
    let marker = words.next_if(|word| word.starts_with('@'));
    // A certificate authority cannot be used: libssh2 hands out plain keys only.
    if line.starts_with('#') || marker.is_some_and(|marker| marker != "@revoked") {
        return None;
    }
    let (hosts, kind, key) = (words.next()?, words.next()?, words.next()?);
    let key = STANDARD.decode(key).ok()?;
    is_about(hosts, host, port).then_some(Known { line: number, revoked: marker.is_some(), kind, key })
}

fn is_about(hosts: &str, host: &str, port: u16) -> bool {
    let host = host.to_ascii_lowercase();
    let name = if port == 22 { host } else { format!("[{host}]:{port}") };
    if let Some((salt, hash)) = hosts.strip_prefix("|1|").and_then(|rest| rest.split_once('|')) {
        let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
        return ring::hmac::verify(&key, name.as_bytes(), &hash).is_ok();
    }
    matches_list(hosts, &name)
}

/// A comma-separated list of patterns of OpenSSH: `*` and `?`, and `!` takes back.
pub(super) fn matches_list(patterns: &str, name: &str) -> bool {
    let mut matched = false;
    for pattern in patterns.split(',') {
        let (negated, pattern) = pattern.strip_prefix('!').map_or((false, pattern), |rest| (true, rest));
        if matches(pattern.to_ascii_lowercase().as_bytes(), name.as_bytes()) {
            if negated {
                return false;
            }
            matched = true;
        }
    }
    matched
}

/// Whether a pattern with `*` and `?` fits; linear in the name for each star.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// The type of a key: the first field of its encoding.
fn kind(key: &[u8]) -> String {
    let length = key.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes) as usize);
    let name = key.get(4..4 + length.min(64)).unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// As `ssh-keygen -l` shows it.
pub(super) fn fingerprint(key: &[u8]) -> String {
    let text = STANDARD.encode(Sha256::digest(key));
    format!("SHA256:{}", text.trim_end_matches('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio";
    const B: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn verdict(text: &str, host: &str, port: u16) -> Result<(), String> {
        let key = STANDARD.decode(A).unwrap();
        check("known_hosts", text, host, port, &key).map_err(|error| {
            assert_eq!(error.reason, Reason::HostKey);
            error.to_string()
        })
    }

    #[test]
    fn names_patterns_ports_and_hashes_are_found() {
        for (hosts, host, port) in [
            ("git.example.net", "git.example.net", 22),
            ("Git.Example.net", "git.example.net", 22),
            ("a,git.example.net,b", "git.example.net", 22),
            ("*.example.net", "git.example.net", 22),
            ("g?t.example.net", "git.example.net", 22),
            ("[git.example.net]:2222", "git.example.net", 2222),
            ("[*.example.net]:2222", "git.example.net", 2222),
            ("192.0.2.1", "192.0.2.1", 22),
            // As `ssh-keygen -H` writes `hashed.example.net`.
            ("|1|tKQ04hv4WZlkRBVv7SEsXLobTOM=|A3sfC1YBlWjduj48AcE5Hmk35jk=", "hashed.example.net", 22),
        ] {
            let found = verdict(&format!("# a comment\n\n{hosts}\tssh-ed25519 {A} who@where\n"), host, port);
            assert_eq!(found, Ok(()), "{hosts}");
        }
    }

    #[test]
    fn another_key_another_host_another_port_and_a_revoked_key_are_told_apart() {
        let changed = verdict(&format!("h ssh-ed25519 {B}\n"), "h", 22).unwrap_err();
        assert!(changed.contains("has changed") && changed.matches("SHA256:").count() == 2, "{changed}");
        assert!(changed.contains("known_hosts:1"), "{changed}");
        let unknown = verdict(&format!("other ssh-ed25519 {A}\n"), "h", 22).unwrap_err();
        assert!(unknown.contains("h is not in known_hosts"), "{unknown}");
        let port = verdict(&format!("h ssh-ed25519 {A}\n"), "h", 2222).unwrap_err();
        assert!(port.contains("[h]:2222 is not in") && port.contains("-p 2222"), "{port}");
        let negated = verdict(&format!("*,!h ssh-ed25519 {A}\n"), "h", 22).unwrap_err();
        assert!(negated.contains("is not in"), "{negated}");
        let revoked = verdict(&format!("h ssh-ed25519 {A}\n@revoked h ssh-ed25519 {A}\n"), "h", 22).unwrap_err();
        assert!(revoked.contains("revoked") && revoked.contains("known_hosts:2"), "{revoked}");
        let authority = verdict(&format!("@cert-authority h ssh-ed25519 {A}\n"), "h", 22).unwrap_err();
        assert!(authority.contains("is not in"), "{authority}");
        let rsa = format!("h ssh-rsa {}\n", STANDARD.encode(b"\0\0\0\x07ssh-rsa\0\0\0\x01\x03"));
        let kind = verdict(&rsa, "h", 22).unwrap_err();
        assert!(kind.contains("none of this type") && kind.contains("-t ed25519 h"), "{kind}");
    }

    #[test]
    fn a_damaged_line_is_no_key_and_hides_no_other() {
        let text = format!("h\nh ssh-ed25519\nh ssh-ed25519 %%%\n|1|x ssh-ed25519 {A}\nh ssh-ed25519 {A}\n");
        assert_eq!(verdict(&text, "h", 22), Ok(()));
    }
}
