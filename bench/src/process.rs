//! What a process has used.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// CPU seconds of a process, user and system, of all threads that it has or has had: its clock (`clock_getcpuclockid(3)`),
/// which counts nanoseconds where `/proc` counts ticks.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let id = Pid::from_raw(pid.try_into().context("no process id")?);
    let used = clock_getcpuclockid(id).and_then(ClockId::now);
    let used = used.with_context(|| format!("process {pid} is gone"))?;
    Ok(Duration::from(used).as_secs_f64())
}

/// Resident memory of a process in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_its_cpu_time_never_falls() {
        let pid = std::process::id();
        assert!(resident(pid).unwrap() > 0.5);
        let before = cpu_seconds(pid).unwrap();
        assert!(before > 0.0);
        assert!(cpu_seconds(pid).unwrap() > before);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(cpu_seconds(u32::MAX).is_err());
    }
}
