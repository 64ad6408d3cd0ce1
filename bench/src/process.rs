//! What a process has used, from /proc.

use anyhow::{Context, Result};

/// CPU seconds of a process, user and system, all threads.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // The command may hold spaces; fields count from behind its closing parenthesis.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("odd /proc stat")?
        .1
        .split_whitespace()
        .collect();
    let ticks = |index: usize| -> Result<f64> {
        Ok(fields
            .get(index)
            .context("short /proc stat")?
            .parse::<f64>()?)
    };
    let per_second =
        nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
    Ok((ticks(11)? + ticks(12)?) / per_second)
}

/// Seconds that the threads a process has now have run; finer than [`cpu_seconds`], which counts ticks.
pub(crate) fn run_seconds(pid: u32) -> Result<f64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("process {pid} is gone"))?;
    let mut nanoseconds = 0.0;
    for thread in threads {
        let schedstat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let ran = schedstat.split(' ').next().context("odd schedstat")?;
        nanoseconds += ran.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
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
        assert!(cpu_seconds(pid).unwrap() >= before);
        assert!(run_seconds(pid).unwrap() > 0.0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(cpu_seconds(u32::MAX).is_err());
    }
}
