//! Sysctls below `/proc/sys/net`, which the kernel resolves in the network namespace of the calling thread.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::PathBuf,
};

use super::route::malformed;
use crate::{
    kernel::KernelError,
    state::{Key, SysctlKey, Value, sysctl_text},
};

/// The longest value that is read.
const LONGEST: usize = 1024;

/// Whether the kernel announces that a sysctl was changed (`RTM_NEWNETCONF`: `net/ipv4/devinet.c`, `net/ipv6/addrconf.c`;
/// seen on 6.18). Older ones announce `ignore_routes_with_linkdown` of IPv6 for `all` and `default` only.
pub(super) fn is_announced(path: &str) -> bool {
    match path.rsplit('/').next() {
        Some("ip_forward" | "forwarding" | "rp_filter") => true,
        Some("ignore_routes_with_linkdown") => path.starts_with("ipv4/"),
        _ => false,
    }
}

/// Values of the paths that exist.
pub(super) fn read(paths: &[String]) -> Result<Vec<(Key, Value)>, KernelError> {
    let mut found = Vec::new();
    for path in paths {
        if let Some(value) = read_one(path)? {
            found.push((Key::Sysctl(SysctlKey { path: path.as_str().into() }), value));
        }
    }
    Ok(found)
}

/// The value of a path, if there is such a one.
pub(super) fn read_one(path: &str) -> Result<Option<Value>, KernelError> {
    let mut bytes = [0; LONGEST];
    // The kernel gives a value in one piece, and what asks for the size of the file first takes twice as long.
    match File::open(file(path)?).and_then(|mut file| file.read(&mut bytes)) {
        Ok(length) => {
            let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
            Ok(Some(Value::Sysctl { value: sysctl_text(text.trim_end_matches('\n')) }))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KernelError::Sysctl { doing: format!("read sysctl net/{path}"), source }),
    }
}

/// Writes a value. A sysctl cannot be removed: nothing wanted means that it is left as it is.
pub(super) fn set(path: &str, after: Option<&Value>) -> Result<(), KernelError> {
    let value = match after {
        None => return Ok(()),
        Some(Value::Sysctl { value }) => value,
        Some(_) => return Err(malformed("the value of a sysctl")),
    };
    std::fs::write(file(path)?, format!("{value}\n")).map_err(|source| refused(path, value, source))
}

fn refused(path: &str, value: &str, source: io::Error) -> KernelError {
    let doing = format!("set sysctl net/{path} to {value}");
    if source.kind() == ErrorKind::PermissionDenied {
        return super::privilege(&doing);
    }
    KernelError::Sysctl { doing, source }
}

fn file(path: &str) -> Result<PathBuf, KernelError> {
    let plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if plain { Ok(PathBuf::from("/proc/sys/net").join(path)) } else { Err(malformed("the path of a sysctl")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_kernel_does_not_announce_of_an_interface_is_looked_at() {
        let announced = ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/wan0/ignore_routes_with_linkdown"];
        assert!(announced.into_iter().all(is_announced));
        let silent = ["ipv6/conf/wan0/ignore_routes_with_linkdown", "ipv6/conf/wan0/accept_ra"];
        assert!(!silent.into_iter().any(is_announced));
    }
}
