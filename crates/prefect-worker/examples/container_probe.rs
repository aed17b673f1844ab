//! What runs inside the containers of the launcher's tests: a static program of the standard library alone.
//!
//! `container_probe exit N`, `sleep SECONDS`, `print TEXT…`, `env`, `cat FILE…`, `facts`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is its job")]

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["exit", code] => return ExitCode::from(code.parse().unwrap_or(99)),
        ["sleep", seconds] => std::thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(1))),
        ["print", words @ ..] => println!("{}", words.join(" ")),
        ["env"] => std::env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["cat", files @ ..] => files.iter().for_each(|file| println!("{file}: {}", read(file))),
        ["facts"] => facts(),
        other => {
            eprintln!("unknown request: {other:?}");
            return ExitCode::from(98);
        }
    }
    ExitCode::SUCCESS
}

/// The text of a file, or why there is none.
fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map_or_else(|error| format!("{:?}", error.kind()), |text| text.trim().to_owned())
}

/// What the kernel says about this process and its surroundings, a line each.
fn facts() {
    let arguments: Vec<String> = std::env::args().collect();
    println!("arguments {}", arguments.join(" "));
    println!(
        "directory {}",
        std::env::current_dir().map_or_else(|e| e.to_string(), |dir| dir.display().to_string())
    );
    println!("pid {}", std::process::id());
    println!("first process {}", read("/proc/1/comm"));
    println!("host name {}", read("/proc/sys/kernel/hostname"));
    for (name, file, wanted) in [
        ("status", "/proc/self/status", &["Uid:", "Groups:", "CapEff:", "NoNewPrivs:"][..]),
        ("limit", "/proc/self/limits", &["Max open files"]),
        ("mount", "/proc/self/mounts", &[" / ", " /dev/shm ", " /scratch ", " /data ", " /vol "]),
        ("hosts", "/etc/hosts", &[""]),
        ("resolv", "/etc/resolv.conf", &[""]),
        ("pids", "/sys/fs/cgroup/pids.max", &[""]),
        ("pids", "/sys/fs/cgroup/pids/pids.max", &[""]),
        ("cpus", "/sys/fs/cgroup/cpu.max", &[""]),
        ("cpus", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &[""]),
    ] {
        for line in read(file).lines().filter(|line| wanted.iter().any(|word| line.contains(word))) {
            println!("{name} {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    let written = std::fs::write("/written", "x").map_err(|error| error.kind());
    println!("root writable {}", written.is_ok());
    println!("device {}", std::path::Path::new("/dev/fuse").exists());
}
