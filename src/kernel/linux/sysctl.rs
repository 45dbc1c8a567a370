//! Sysctls below `/proc/sys/net`, which the kernel resolves in the network namespace of the calling thread.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use super::route::malformed;
use crate::{
    kernel::KernelError,
    state::{Key, SysctlKey, Value, sysctl_text},
};

/// Values of the paths that exist.
pub(super) fn read(paths: &[String]) -> Result<Vec<(Key, Value)>, KernelError> {
    let mut found = Vec::new();
    for path in paths {
        match std::fs::read_to_string(file(path)?) {
            Ok(text) => {
                let value = sysctl_text(text.trim_end_matches('\n'));
                found.push((Key::Sysctl(SysctlKey { path: path.as_str().into() }), Value::Sysctl { value }));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(KernelError::Sysctl { doing: format!("read sysctl net/{path}"), source }),
        }
    }
    Ok(found)
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
