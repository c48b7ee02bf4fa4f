//! The last step into a container: finding the program and becoming it.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{Access, access};

/// Where programs are looked for when the environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program cannot be run, worded as people know it from other runtimes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// No such program in any folder of the path.
    #[error("exec: \"{0}\": executable file not found in $PATH")]
    NotInPath(String),
    /// The path given does not exist.
    #[error("exec: \"{0}\": stat {0}: no such file or directory")]
    Missing(String),
    /// It is there, but not executable (or a folder).
    #[error("exec: \"{0}\": permission denied")]
    Denied(String),
    /// The kernel refused it.
    #[error("exec {0}: {1}")]
    Exec(String, rustix::io::Errno),
    /// An argument or variable holds a zero byte.
    #[error("an argument or variable contains a zero byte")]
    Zero,
}

/// Finds the program `name` as a shell would.
pub fn find(name: &str, path: &str) -> Result<PathBuf, ProgramError> {
    if name.contains('/') {
        let candidate = PathBuf::from(name);
        return match (candidate.exists(), runnable(&candidate)) {
            (false, _) => Err(ProgramError::Missing(name.to_owned())),
            (true, false) => Err(ProgramError::Denied(name.to_owned())),
            (true, true) => Ok(candidate),
        };
    }
    path.split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|candidate| runnable(candidate))
        .ok_or_else(|| ProgramError::NotInPath(name.to_owned()))
}

fn runnable(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

/// Replaces this process by the program; returns only when that fails.
pub fn execute(args: &[String], env: &[String]) -> ProgramError {
    let Some(name) = args.first() else { return ProgramError::Missing(String::new()) };
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let file = match find(name, path) {
        Ok(file) => file,
        Err(error) => return error,
    };
    let strings = |list: &[String]| list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(args), Ok(env), Ok(file)) =
        (strings(args), strings(env), CString::new(file.into_os_string().into_encoded_bytes()))
    else {
        return ProgramError::Zero;
    };
    mycelium_linux::signals::reset_for_exec();
    let Err(error) = nix::unistd::execve(&file, &args, &env);
    ProgramError::Exec(name.clone(), rustix::io::Errno::from_raw_os_error(error as i32))
}

/// The executor that libcontainer calls in a new container's first process.
#[derive(Clone)]
pub struct Program;

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default();
        let env: Vec<String> = std::env::vars().map(|(key, value)| format!("{key}={value}")).collect();
        Err(ExecutorError::Other(execute(&args, &env).to_string()))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref();
        let args = process.and_then(|p| p.args().clone()).unwrap_or_default();
        let env = process.and_then(|p| p.env().clone()).unwrap_or_default();
        let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let name = args.first().map(String::as_str).unwrap_or_default();
        find(name, path).map_err(|e| ExecutorValidationError::ArgValidationError(e.to_string()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_refused_with_the_usual_words() {
        assert_eq!(find("sh", "/nowhere:/bin"), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(
            find("nope", "/bin").map_err(|e| e.to_string()),
            Err("exec: \"nope\": executable file not found in $PATH".to_owned())
        );
        assert_eq!(find("/etc/passwd", ""), Err(ProgramError::Denied("/etc/passwd".into())));
        assert_eq!(find("/none", ""), Err(ProgramError::Missing("/none".into())));
    }
}
