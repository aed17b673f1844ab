//! What the launchers' tests launch: a static program without needs.
//!
//! `container_probe exit N`, `sleep SECONDS`, `print TEXT…`, `env`, `cat FILE…`, `facts`, `lines N`,
//! `memory MIB`; `polite` ends with 5 at SIGTERM, `stubborn` does not end, and both say `ready` first.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is its job")]

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

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
        ["lines", count] => lines(count.parse().unwrap_or(0)),
        ["memory", mebibytes] => {
            let bytes = vec![1_u8; mebibytes.parse::<usize>().unwrap_or(1) << 20];
            println!("{}", bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>());
        }
        ["polite"] => return answer_signals(true),
        ["stubborn"] => return answer_signals(false),
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

/// Numbered lines, every other one on stderr.
fn lines(count: u32) {
    for number in 0..count {
        if number % 2 == 0 {
            println!("line {number:06} {}", "-".repeat(80));
        } else {
            eprintln!("line {number:06} {}", "-".repeat(80));
        }
    }
}

fn answer_signals(polite: bool) -> ExitCode {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return ExitCode::from(97);
    };
    runtime.block_on(async {
        let Ok(mut requests) = signal(SignalKind::terminate()) else { return ExitCode::from(97) };
        println!("ready");
        loop {
            requests.recv().await;
            println!("asked to end");
            if polite {
                return ExitCode::from(5);
            }
        }
    })
}
