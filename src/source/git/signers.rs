//! The file of allowed signers, as `ssh-keygen(1)` describes it.
//!
//! Invariant: a line that is not understood whole accepts nobody, and says so when somebody is refused.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use ssh_key::public::{KeyData, PublicKey};

use super::{hostkey::matches_list, signature::Purpose};

/// The lines of a file.
#[derive(Debug, Default)]
pub(super) struct Signers {
    entries: Vec<Entry>,
    /// Lines that could not be understood: number and why.
    pub(super) broken: Vec<(usize, String)>,
}

#[derive(Debug)]
struct Entry {
    line: usize,
    principals: String,
    key: KeyData,
    namespaces: Option<String>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

impl Signers {
    /// Reads a file.
    pub(super) fn parse(text: &str) -> Self {
        let mut signers = Self::default();
        for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match entry(number, line) {
                Ok(entry) => signers.entries.push(entry),
                Err(why) => signers.broken.push((number, why)),
            }
        }
        signers
    }

    /// Who signs with this key at this time; an error says why nobody does.
    pub(super) fn find(&self, key: &KeyData, at: Timestamp, purpose: Purpose) -> Result<&str, String> {
        let mut why = "the key is not in the file of allowed signers".to_owned();
        for entry in self.entries.iter().filter(|entry| entry.key == *key) {
            match entry.refuses(at, purpose) {
                None => return Ok(&entry.principals),
                Some(reason) => why = format!("line {} of the allowed signers {reason}", entry.line),
            }
        }
        if let Some((line, reason)) = self.broken.first() {
            why.push_str(&format!("; its line {line} cannot be used ({reason})"));
        }
        Err(why)
    }
}

impl Entry {
    fn refuses(&self, at: Timestamp, purpose: Purpose) -> Option<String> {
        let Purpose { namespace, what } = purpose;
        if self.namespaces.as_ref().is_some_and(|list| !matches_list(list, namespace)) {
            return Some(format!("is not for `{namespace}`"));
        }
        if self.after.is_some_and(|after| at < after) {
            return Some(format!("is not valid yet at the time of the {what}"));
        }
        if self.before.is_some_and(|before| at > before) {
            return Some(format!("is not valid any more at the time of the {what}"));
        }
        None
    }
}

fn entry(number: usize, line: &str) -> Result<Entry, String> {
    let mut words = words(line)?.into_iter();
    let principals = words.next().ok_or("it is empty")?.trim_matches('"').to_owned();
    let mut next = words.next().ok_or("the key is missing")?;
    let mut options = String::new();
    if !is_key_type(&next) {
        options = std::mem::replace(&mut next, words.next().ok_or("the key is missing")?);
    }
    let data = words.next().ok_or("the key is missing")?;
    let key = PublicKey::from_openssh(&format!("{next} {data}")).map_err(|error| format!("its key: {error}"))?;
    let key = key.key_data().clone();
    let mut entry = Entry { line: number, principals, key, namespaces: None, after: None, before: None };
    for option in split(&options, ',')?.iter().filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = value.trim_matches('"');
        match name.to_ascii_lowercase().as_str() {
            "namespaces" => entry.namespaces = Some(value.to_owned()),
            "valid-after" => entry.after = Some(time(value)?),
            "valid-before" => entry.before = Some(time(value)?),
            "cert-authority" => return Err("certificates are not supported: list the keys themselves".into()),
            _ => return Err(format!("unknown option `{name}`")),
        }
    }
    Ok(entry)
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| word.starts_with(prefix)) && !word.contains('=')
}

fn words(line: &str) -> Result<Vec<String>, String> {
    Ok(split(&line.replace('\t', " "), ' ')?.into_iter().filter(|word| !word.is_empty()).collect())
}

/// Splits where no double quotes are open.
fn split(text: &str, at: char) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        quoted ^= c == '"';
        if c == at && !quoted {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    if quoted { Err("a quote is not closed".into()) } else { Ok(parts) }
}

/// `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, local unless a `Z` follows.
fn time(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("`{text}` is not a time such as 20261231 or 20261231235959Z");
    let (digits, zone) = match text.strip_suffix('Z') {
        Some(digits) => (digits, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    let format = match digits.len() {
        8 => "%Y%m%d",
        12 => "%Y%m%d%H%M",
        14 => "%Y%m%d%H%M%S",
        _ => return Err(wrong()),
    };
    let civil = match digits.len() {
        8 => jiff::civil::Date::strptime(format, digits).map(|date| date.to_datetime(jiff::civil::Time::midnight())),
        _ => DateTime::strptime(format, digits),
    };
    let zoned = civil.and_then(|civil| civil.to_zoned(zone)).map_err(|_| wrong())?;
    Ok(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio";

    fn find(line: &str) -> Result<String, String> {
        let key = PublicKey::from_openssh(KEY).unwrap();
        let at = "2026-06-01T00:00:00Z".parse().unwrap();
        Signers::parse(&line.replace("KEY", KEY))
            .find(key.key_data(), at, Purpose { namespace: "git", what: "commit" })
            .map(str::to_owned)
    }

    #[test]
    fn lines_that_accept() {
        for line in [
            "ada@example.net KEY",
            "# first\n\nada@example.net KEY with a comment",
            "ada@example.net namespaces=\"git\" KEY",
            "ada@example.net\tnamespaces=\"file,git\"\tKEY",
            "ada@example.net namespaces=\"*\",valid-after=\"20260101\",valid-before=20270101Z KEY",
            "ada@example.net valid-before=\"20260102030405Z\" KEY\nada@example.net KEY",
        ] {
            assert_eq!(find(line).as_deref(), Ok("ada@example.net"), "{line}");
        }
    }

    #[test]
    fn lines_that_refuse_say_why() {
        for (line, why) in [
            ("", "not in the file"),
            ("ada@example.net namespaces=\"file\" KEY", "is not for `git`"),
            ("ada@example.net valid-before=\"20260101Z\" KEY", "not valid any more"),
            ("ada@example.net valid-after=\"203001011200Z\" KEY", "not valid yet"),
            ("ada@example.net cert-authority KEY", "certificates are not supported"),
            ("ada@example.net verify-required KEY", "unknown option `verify-required`"),
            ("ada@example.net valid-before=\"yesterday\" KEY", "is not a time"),
            ("ada@example.net namespaces=\"git KEY", "quote is not closed"),
            ("ada@example.net", "key is missing"),
            ("ada@example.net ssh-ed25519 AAAA", "its key"),
        ] {
            let found = find(line).unwrap_err();
            assert!(found.contains(why), "{line}: {found}");
        }
    }
}
