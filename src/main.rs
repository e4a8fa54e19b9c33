//! The `zkmw` binary: reads the configuration, starts the role, and ends with its exit code.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{IsTerminal as _, Write as _};
use std::panic::{PanicHookInfo, catch_unwind};
use std::process::ExitCode;

use env_logger::Target;
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};
use zkmw::config::{self, Config};
use zkmw::machine::Instant;
use zkmw::report::StderrAboveBar;
use zkmw::shell::NOTICES;
use zkmw::{clock, exec, exit, resource_check, service, shell};

/// Most bytes of a panic's message that are shown: what it quotes may be as large as all that the process holds.
const MAX_PANIC_BYTES: usize = 2_000;

/// The subcommand of the keeper of slots, which only zkmw starts: no help text names it.
const SLOTS: &str = "slots";

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(say_panic));
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(word) if word == SLOTS => return serve(SLOTS, exec::keep_slots()),
        Some(word) if word == exec::WRITE_LOGS => {
            return serve(exec::WRITE_LOGS, exec::write_logs(&args.collect::<Vec<_>>()));
        }
        Some(_) | None => {}
    }
    let variable = |name: &str| std::env::var_os(name);
    let code = match config::load(std::env::args_os(), variable, config::DEFAULT_FILE.as_ref()) {
        Ok(config) => {
            log_to_stderr(&config);
            obey(config)
        }
        Err(error) => {
            // Who closed the pipe does not want to read it.
            let _ = match error.to_stdout {
                true => std::io::stdout().write_all(line(&error.message).as_bytes()),
                false if service::logs_to_journal() => std::io::stderr()
                    .write_all(service::journal_lines(Level::Error, &error.message).as_bytes()),
                false => std::io::stderr().write_all(line(&error.message).as_bytes()),
            };
            error.exit_code
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Does what the configuration says. A daemon refuses variables that nothing reads, as it does keys of the file; a
/// client runs in other people's environments, such as a task's, and only warns.
fn obey(config: Config) -> i32 {
    let unknown = config::unknown_variables(std::env::vars_os());
    if !config.command.is_daemon() {
        unknown.iter().for_each(|text| log::warn!("{text}"));
        return run(config);
    }
    if !unknown.is_empty() {
        unknown.iter().for_each(|text| log::error!("{text}"));
        return exit::CONFIG;
    }
    let began = clock::now();
    let code = run(config);
    back_off(code, began);
    code
}

/// Says where a thread of ours panicked and why, in few words; with a backtrace if `RUST_BACKTRACE` asks for one.
fn say_panic(panic: &PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("no message");
    let short = &text[..text.floor_char_boundary(MAX_PANIC_BYTES)];
    let more = if short.len() < text.len() { "…" } else { "" };
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let mut words = format!("zkmw: thread {name} panicked at {at}: {short}{more}\n");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        words.push_str(&format!("{backtrace}\n"));
    }
    if service::logs_to_journal() {
        words = service::journal_lines(Level::Error, &words);
    }
    // Not by way of the logger, which may be what panicked.
    let _ = std::io::stderr().write_all(words.as_bytes());
}

/// The end of a process that serves a worker or an elector. It has no log: nobody may read standard error, and that
/// must not keep it waiting.
fn serve(name: &str, ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "zkmw {name}: {error:#}");
            ExitCode::from(u8::try_from(exit::USAGE).unwrap_or(u8::MAX))
        }
    }
}

/// The text, with the end of a line.
fn line(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

fn run(config: Config) -> i32 {
    match catch_unwind(|| zkmw::start::start(config)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => match resource_check::explain(&error) {
            Some(shortage) => {
                log::error!("{shortage}");
                exit::TRY_AGAIN
            }
            None => {
                log::error!("{error:#}");
                exit::BUG
            }
        },
        Err(_) => {
            log::error!("this is a bug in zkmw; please report it with the log above");
            exit::BUG
        }
    }
}

/// Waits before the end of a daemon that failed soon, if a service manager restarts it.
fn back_off(code: i32, began: Instant) {
    match shell::listen(true) {
        Ok(signals) => service::back_off(code, clock::now().since(began), &signals),
        Err(error) => log::debug!("no pause before a restart: {error:#}"),
    }
}

/// The journal has times of its own.
fn for_journal(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let text = match record.target() {
        "zkmw" => record.args().to_string(),
        module => format!("{module}: {}", record.args()),
    };
    out.write_all(service::journal_lines(record.level(), &text).as_bytes())
}

/// Logs go to standard error: what a service does, and what of a client's work its user must know. The client
/// library's own log is left out, for it writes 100,000 lines a second when no server answers.
fn log_to_stderr(config: &Config) {
    let daemon = config.command.is_daemon();
    let base = if daemon { 3 } else { 2 };
    let level = match base + i32::from(config.verbosity) {
        ..=0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        5.. => LevelFilter::Trace,
    };
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level)
        .filter_module("zookeeper", LevelFilter::Off)
        .filter_module("mio", LevelFilter::Off);
    // Who sits at a terminal wonders what is going on. A log, or a mail by cron, shall say something only if there is
    // something to do.
    if !daemon && level == LevelFilter::Warn && std::io::stderr().is_terminal() {
        builder.filter_module(NOTICES, LevelFilter::Info);
    }
    builder.target(Target::Pipe(Box::new(StderrAboveBar)));
    builder.parse_default_env();
    if daemon && service::logs_to_journal() {
        builder.format(for_journal);
    } else if !daemon {
        builder.format(|out, record| match record.level() {
            log::Level::Error => writeln!(out, "zkmw: {}", record.args()),
            level => writeln!(out, "zkmw: {}: {}", level.as_str().to_lowercase(), record.args()),
        });
    }
    builder.init();
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _};
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Not a test by itself: a daemon that panics with a message of 100 KB.
    #[test]
    fn a_daemon_that_panics() {
        if std::env::var_os("ZKMW_TEST_PANIC").is_some() {
            std::panic::set_hook(Box::new(say_panic));
            let args = ["zkmw", "master", "--zk", "h:1"].into_iter().map(std::ffi::OsString::from);
            let config = config::load(args, |_| None, "/nowhere".as_ref()).expect("a configuration");
            log_to_stderr(&config);
            panic!("one\ntwo {}", "x".repeat(100_000));
        }
    }

    #[test]
    fn a_panic_is_logged_briefly_with_the_priority_of_an_error() {
        for is_journal in [true, false] {
            let mut stderr_file: File = tempfile::tempfile().expect("a file");
            let meta = stderr_file.metadata().expect("metadata");
            let mut command = Command::new(std::env::current_exe().expect("it runs"));
            command.args(["--exact", "tests::a_daemon_that_panics", "--nocapture"]);
            command.env("ZKMW_TEST_PANIC", "1").env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
            if is_journal {
                command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
            }
            let stderr = Stdio::from(stderr_file.try_clone().expect("a duplicate"));
            command.stdout(Stdio::null()).stderr(stderr).status().expect("it ends");
            stderr_file.rewind().expect("rewind");
            let mut text = String::new();
            stderr_file.read_to_string(&mut text).expect("text");
            let short: String = text.chars().take(300).collect();
            assert!(text.len() < MAX_PANIC_BYTES + 1_000, "{} bytes: {short}", text.len());
            assert!(text.contains("panicked at src/main.rs") && text.contains("one\n"), "{short}");
            assert_eq!(text.contains("<3>two"), is_journal, "{short}");
        }
    }
}
