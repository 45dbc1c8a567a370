//! A path, or one family of it: what can work by itself and fail by itself.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Family, Name, UnitError, bad};

/// A path, or one address family of it. Prints itself in words; written down it is `PATH`, `PATH/ipv4` or `PATH/ipv6`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPart {
    /// The path.
    pub path: Name,
    /// The family; none for the path as a whole.
    pub family: Option<Family>,
}

impl PathPart {
    /// The path as a whole.
    #[must_use]
    pub fn whole(path: &Name) -> Self {
        Self { path: path.clone(), family: None }
    }

    /// One family of it.
    #[must_use]
    pub fn family(path: &Name, family: Family) -> Self {
        Self { path: path.clone(), family: Some(family) }
    }
}

/// Parts of paths in words, one for each path. Its families say more than the path as a whole.
pub fn told(parts: &BTreeSet<PathPart>) -> impl Iterator<Item = String> + '_ {
    let is_in = |path: &Name, family| parts.contains(&PathPart { path: path.clone(), family });
    parts.iter().filter_map(move |part| {
        let [four, six] = Family::ALL.map(|family| is_in(&part.path, Some(family)));
        match part.family {
            None if four || six => None,
            Some(Family::V4) if six => None,
            Some(Family::V6) if four => Some(format!("path {} in both families", part.path)),
            _ => Some(part.to_string()),
        }
    })
}

impl fmt::Display for PathPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Some(family) => write!(f, "{family} of path {}", self.path),
            None => write!(f, "path {}", self.path),
        }
    }
}

impl From<PathPart> for String {
    fn from(part: PathPart) -> Self {
        match part.family {
            Some(Family::V4) => format!("{}/ipv4", part.path),
            Some(Family::V6) => format!("{}/ipv6", part.path),
            None => part.path.to_string(),
        }
    }
}

impl FromStr for PathPart {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let (path, family) = match s.split_once('/') {
            None => (s, None),
            Some((path, "ipv4")) => (path, Some(Family::V4)),
            Some((path, "ipv6")) => (path, Some(Family::V6)),
            Some(_) => return bad(format!("`{s}` is neither a path nor a family of one, such as `fiber/ipv6`")),
        };
        Ok(Self { path: path.parse()?, family })
    }
}

impl TryFrom<String> for PathPart {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_path_is_told_in_words_and_survives_being_written_down() {
        for (text, words) in
            [("fiber", "path fiber"), ("fiber/ipv4", "IPv4 of path fiber"), ("fiber/ipv6", "IPv6 of path fiber")]
        {
            let part: PathPart = text.parse().unwrap();
            assert_eq!((part.to_string(), String::from(part.clone())), (words.to_owned(), text.to_owned()));
            assert_eq!(serde_json::from_str::<PathPart>(&serde_json::to_string(&part).unwrap()).unwrap(), part);
        }
        let parts = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<PathPart>>();
        let all = parts(&["fiber", "fiber/ipv4", "fiber/ipv6", "lte", "sat", "sat/ipv6"]);
        assert_eq!(told(&all).collect::<Vec<_>>(), ["path fiber in both families", "path lte", "IPv6 of path sat"]);
        for wrong in ["", "/ipv6", "fiber/ipx", "fiber/", "Fiber"] {
            assert!(wrong.parse::<PathPart>().is_err(), "{wrong}");
        }
    }
}
