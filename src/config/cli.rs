//! The command line: clap's tree of commands, made from the table of settings, and the words of the help. clap
//! only sorts the arguments; what a value means is decided later, together with the other layers.

mod texts;

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::builder::{OsStringValueParser, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::ConfigError;
use super::given::words;
use super::settings::{Fallback, Separator, Shape, Spec, TABLE, Verb};
use crate::exit;

/// The widest help, whatever the terminal.
const MAX_WIDTH: usize = 100;

/// The arguments, sorted.
pub struct Arguments {
    pub verb: Verb,
    pub flags: BTreeMap<&'static str, Vec<OsString>>,
    /// Arguments without a flag: a TASK, or ids.
    pub words: Vec<OsString>,
    /// Arguments after `--`.
    pub program: Vec<OsString>,
}

/// Sorts the arguments, of which the first is the name of the program.
pub fn sort(args: impl Iterator<Item = OsString>) -> Result<Arguments, ConfigError> {
    let args: Vec<OsString> = args.collect();
    let mut tree = tree();
    let matches = tree.try_get_matches_from_mut(&args).map_err(|e| usage_error(e, &args))?;
    let Some((name, of_verb)) = matches.subcommand() else {
        return Err(ConfigError { exit_code: exit::USAGE, message: help_text(&mut tree), to_stdout: false });
    };
    if let Some(text) = texts::made(name, of_verb) {
        return Err(ConfigError { exit_code: exit::OK, message: text, to_stdout: true });
    }
    let verb = Verb::from_name(name).expect("clap knows only our commands");
    let mut flags = BTreeMap::new();
    for spec in TABLE.iter().map(|s| s.spec()).filter(|s| s.is_of(verb)) {
        let mut items = Vec::new();
        if spec.is_common() {
            take(spec, &matches, &mut items);
        }
        take(spec, of_verb, &mut items);
        if let Some(last) = items.last() {
            let items = match spec.shape {
                Shape::List(..) => items,
                Shape::Count(_) => vec![OsString::from(items.len().min(9).to_string())],
                Shape::Value(_) | Shape::Switch { .. } => vec![last.clone()],
            };
            flags.insert(spec.name, items);
        }
    }
    let positional = |id: &str| match of_verb.try_get_many::<OsString>(id) {
        Ok(Some(values)) => values.cloned().collect(),
        Ok(None) | Err(_) => Vec::new(),
    };
    Ok(Arguments { verb, flags, words: positional(WORDS), program: positional(PROGRAM) })
}

// Not a flag's name, as it has a capital letter.
const WORDS: &str = "Words";
const PROGRAM: &str = "Program";

/// Appends what one level of the command line says about a setting.
fn take(spec: &Spec, matches: &ArgMatches, items: &mut Vec<OsString>) {
    match spec.shape {
        Shape::Switch { negation } => {
            if matches.get_flag(spec.name) {
                items.push("true".into());
            } else if matches.get_flag(negation) {
                items.push("false".into());
            }
        }
        Shape::Count(_) => {
            items.extend((0..matches.get_count(spec.name)).map(|_| OsString::new()));
        }
        Shape::Value(_) | Shape::List(..) => {
            for value in matches.get_many::<OsString>(spec.name).into_iter().flatten() {
                match (spec.shape, value.to_str().map(words)) {
                    (Shape::List(_, Separator::Words), Some(words)) if !words.is_empty() => {
                        items.extend(words)
                    }
                    _ => items.push(value.clone()),
                }
            }
        }
    }
}

fn tree() -> Command {
    let mut tree = Command::new("zkmw")
        .bin_name("zkmw")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A task service on the ZooKeeper ensemble that you already run")
        .max_term_width(MAX_WIDTH)
        .args_override_self(true)
        .subcommand_value_name("COMMAND")
        .subcommand_help_heading("Commands")
        .after_help(AFTER_HELP);
    for spec in TABLE.iter().map(|s| s.spec()).filter(|s| s.is_common()) {
        tree = tree.args(arguments(spec));
    }
    tree.subcommands(Verb::ALL.into_iter().map(command)).subcommands(texts::commands())
}

fn command(verb: Verb) -> Command {
    let mut command = Command::new(verb.name())
        .about(about(verb))
        .args_override_self(true)
        .max_term_width(MAX_WIDTH)
        .override_usage(usage(verb))
        .after_help(examples(verb));
    let own = TABLE.iter().map(|s| s.spec()).filter(|s| s.is_of(verb));
    for spec in own.clone().filter(|s| !s.is_common()) {
        command = command.args(arguments(spec));
    }
    for spec in own.filter(|s| s.is_common()) {
        command =
            command.args(arguments(spec).into_iter().map(|a| a.help_heading("Options of every command")));
    }
    // Hidden, as the usage says it better. What is wrong with their number is said by us: clap can't know what
    // was meant.
    let rest =
        |id: &'static str| Arg::new(id).num_args(0..).value_parser(OsStringValueParser::new()).hide(true);
    match verb {
        Verb::Submit => command.arg(rest(WORDS)).arg(rest(PROGRAM).last(true)),
        Verb::Elector => command.arg(rest(PROGRAM).last(true)),
        Verb::Show | Verb::Why | Verb::Wait | Verb::Cancel | Verb::Retry | Verb::Delete => {
            command.arg(rest(WORDS))
        }
        Verb::Master | Verb::Worker | Verb::Status | Verb::Workers | Verb::Elections | Verb::List => command,
    }
}

/// The flag of a setting, and for a switch the hidden one that takes it back.
fn arguments(spec: &'static Spec) -> Vec<Arg> {
    let mut help = format!("{}.", spec.help);
    match spec.default {
        Fallback::Text(text) | Fallback::Described(text) => help.push_str(&format!(" [default: {text}]")),
        Fallback::Nothing => {}
    }
    let arg = Arg::new(spec.name).long(spec.name).help(help);
    let valued = |arg: Arg, name: &'static str, action| {
        arg.value_name(name)
            .action(action)
            .value_parser(OsStringValueParser::new())
            .allow_negative_numbers(true)
    };
    match spec.shape {
        Shape::Value(name) => vec![valued(arg, name, ArgAction::Set)],
        Shape::List(name, _) => vec![valued(arg, name, ArgAction::Append)],
        Shape::Count(letter) => vec![arg.short(letter).action(ArgAction::Count)],
        Shape::Switch { negation } => vec![
            arg.action(ArgAction::SetTrue).overrides_with(negation),
            Arg::new(negation).long(negation).action(ArgAction::SetTrue).overrides_with(spec.name).hide(true),
        ],
    }
}

fn help_text(command: &mut Command) -> String {
    command.render_help().to_string().trim_end().to_owned()
}

/// clap's error in our form: its exit code 2 is a task's to use.
fn usage_error(mut error: clap::Error, args: &[OsString]) -> ConfigError {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let message = error.render().to_string().trim_end().to_owned();
        return ConfigError { exit_code: exit::OK, message, to_stdout: true };
    }
    let runs_something = args.iter().take_while(|a| *a != "--").any(|a| a == "submit" || a == "elector");
    if error.kind() == ErrorKind::UnknownArgument && runs_something {
        let tip = "quote a shell command line as one argument, or put -- before a program and its arguments";
        let tip = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
        error.insert(ContextKind::Suggested, tip);
    }
    let text = error.render().to_string();
    ConfigError::new(exit::USAGE, text.strip_prefix("error: ").unwrap_or(&text).trim_end())
}

fn about(verb: Verb) -> &'static str {
    match verb {
        Verb::Elector => "Run a command on one machine at a time, with a fencing token",
        Verb::Master => "Assign tasks to workers. One master leads, others are standbys",
        Verb::Worker => "Run tasks on this machine",
        Verb::Submit => "Submit a task, wait for it, print what it printed and exit as it exited",
        Verb::Status => "Show the leader, the standbys, the workers and how many tasks there are",
        Verb::Workers => "Show the workers: slots, load, labels, and how the last ones ended",
        Verb::Elections => "Show all elections, and who leads each",
        Verb::List => "List tasks",
        Verb::Show => "Show all about a task",
        Verb::Why => "Say why a task has no outcome yet, with all reasons",
        Verb::Wait => "Wait for tasks and show their outcomes. The outcomes are kept",
        Verb::Cancel => "Cancel tasks that have no outcome yet. Running tasks are killed",
        Verb::Retry => "Run tasks again that have failed, expired or been cancelled",
        Verb::Delete => "Delete tasks that have ended, with their outcomes",
    }
}

fn usage(verb: Verb) -> String {
    const ID: &str = "ID is JOB/TASK or BATCH/LINE, as printed by list";
    let (forms, note): (&[&str], _) = match verb {
        Verb::Elector => {
            (&["[-- COMMAND [ARG]…]"], "Without a COMMAND it only takes part in the election.".to_owned())
        }
        Verb::Submit => (
            &[
                "TASK                   a shell command line, for /bin/sh -c",
                "-- PROGRAM [ARG]…      a program, run without a shell",
                "--from-file FILE|-     a batch",
            ],
            "A TASK has at most 120 KiB, a PROGRAM with its arguments too.".to_owned(),
        ),
        Verb::Master | Verb::Worker | Verb::Status | Verb::Workers | Verb::Elections | Verb::List => {
            (&[""], String::new())
        }
        Verb::Show | Verb::Why => (&["ID"], format!("{ID}; or the ULID of a task that is in no job.")),
        Verb::Wait => (
            &["ID…"],
            format!("{ID}; or a JOB or BATCH, for all of its tasks;\nor the ULID or key of a task in no job."),
        ),
        Verb::Cancel | Verb::Retry => (
            &["ID…"],
            format!("{ID}; or a JOB or BATCH, for all of its tasks;\nor the ULID of a task in no job."),
        ),
        Verb::Delete => (
            &["ID…", "--state STATE [ID…]"],
            "ID is JOB/TASK, or a JOB or BATCH, for all of its tasks that have ended;\nor the ULID of a task in no job."
                .to_owned(),
        ),
    };
    let lines =
        forms.iter().map(|form| format!("zkmw {} [OPTIONS] {form}", verb.name()).trim_end().to_owned());
    let lines = lines.collect::<Vec<_>>().join("\n       ");
    if note.is_empty() { lines } else { format!("{lines}\n\n{note}") }
}

fn examples(verb: Verb) -> &'static str {
    match verb {
        Verb::Elector => {
            "\
Examples:
  zkmw elector -- /usr/local/bin/nightly-report
  zkmw elector --path /zkmw/elections/mailer --id mail1 --grace 20s -- ./mailer --port 25
  zkmw elector --once -- sh -c 'echo \"I lead, with token $ZKMW_EPOCH\"'

The command gets a fencing token in ZKMW_EPOCH. It grows with each leader."
        }
        Verb::Master => {
            "\
Examples:
  zkmw master
  zkmw --zk zk1,zk2,zk3/prod master --id m1 --result-ttl 7d

Run it on two or three machines. On SIGTERM another master leads at once."
        }
        Verb::Worker => {
            "\
Examples:
  zkmw worker --id w7
  zkmw worker --slots 4 --label gpu=yes --label zone=eu1 --grace 2m
  ZKMW_SLOTS=4 ZKMW_LABEL='gpu=yes zone=eu1' zkmw worker

On SIGTERM it takes no more tasks. Running tasks may go on for --grace. A second SIGTERM skips that."
        }
        Verb::Submit => {
            "\
Examples:
  zkmw submit 'convert in.png -resize 200 /srv/thumbs/in.png'
  zkmw submit --timeout 5m --max-attempts 3 --require gpu=yes -- ./train --epochs 3
  zkmw submit --detach --id nightly-2026-01-31 ./nightly.sh
  seq 1000 | sed 's/^/.\\/import /' | zkmw submit --from-file - --job import
  zkmw submit --from-file million.txt --job import

The task finds ZKMW_TASK (its id), ZKMW_ATTEMPT, ZKMW_EPOCH (its fencing token), ZKMW_WORKER and, in
a batch, ZKMW_LINE in its environment. Its standard input is empty. The exit code is the task's own.
For a batch it is 0 if all succeeded, else 1. See zkmw --help for the others."
        }
        Verb::Status => {
            "\
Examples:
  zkmw status
  zkmw status --watch
  zkmw status --json | jq ."
        }
        Verb::Workers => {
            "\
Examples:
  zkmw workers
  zkmw workers --json | jq -r 'select(.draining) | .id'"
        }
        Verb::Elections => {
            "\
Examples:
  zkmw elections
  zkmw elections --json | jq -r '[.path, .leader.id] | @tsv'

It shows the masters' election and those of electors below ROOT/elections."
        }
        Verb::List => {
            "\
Examples:
  zkmw list --state running
  zkmw list --job import --state failed,expired --json"
        }
        Verb::Show => {
            "\
Examples:
  zkmw show import~2026-01-31/42
  zkmw show --json _3f/01J9ZS1Y0M8T6X4W2V7R5Q3P1N"
        }
        Verb::Why => {
            "\
Examples:
  zkmw why import~2026-01-31/42
  zkmw why --json _3f/01J9ZS1Y0M8T6X4W2V7R5Q3P1N | jq -r '.reasons[].reason'

It only reads, and judges by the leader's summary, which may be some seconds old."
        }
        Verb::Wait => {
            "\
Examples:
  id=$(zkmw submit --detach ./slow.sh); zkmw wait \"$id\"
  zkmw wait import~2026-01-31/42
  zkmw wait import"
        }
        Verb::Cancel => {
            "\
Examples:
  zkmw cancel _3f/01J9ZS1Y0M8T6X4W2V7R5Q3P1N
  zkmw cancel import~2026-01-31/42
  zkmw cancel import"
        }
        Verb::Retry => {
            "\
Examples:
  zkmw retry import~2026-01-31/42
  zkmw retry import"
        }
        Verb::Delete => {
            "\
Examples:
  zkmw delete import~2026-01-31
  zkmw delete --state failed,cancelled --older-than 3d

Tasks that have not ended are kept. The leader deletes tasks with a key (--id) a little later."
        }
    }
}

const AFTER_HELP: &str = "\
Values:
  TIME is a number with a unit: 500ms, 10s, 5m, 24h, 7d, 1h30m. SIZE is in bytes, or with KiB,
  MiB, GiB or TiB.

Where settings come from, the strongest first:
  1. flags, before or after the command; the last one counts, and --no-json takes back a --json
  2. variables: ZKMW_ and the flag in upper case, so --session-timeout is ZKMW_SESSION_TIMEOUT; for
     switches true or false; for lists several with spaces between (ZKMW_AUTH, ZKMW_ENV: one a line)
  3. the file given by --config or ZKMW_CONFIG, else /etc/zkmw/zkmw.toml if there is one
  4. the defaults shown here
  Not from variables and the file, since they are about one call: submit's --id, --from-file and
  --chunk; delete's --state and --older-than.

The file is TOML. Keys are the flags' names; those in a command's table are for it alone:
  zk = \"zk1:2181,zk2:2181,zk3:2181/prod\"
  auth = [\"digest:zkmw:secret\"]
  [worker]
  slots = 8
  label = { gpu = \"yes\", zone = \"eu1\" }

Exit codes:
  0    all went well              73   too much for the ensemble; output was cut
  1    some task failed           75   try again
  64   bad usage                  77   not permitted
  65   bad input data             78   bad configuration
  69   no ensemble in time        124  the task ran past its --timeout
  70   a bug in zkmw              128+n  (130, 143, …) ended by signal n
  126, 127  the task's program could not be run, was not found
  submit, wait of one task and elector --once exit as what they ran; --json separates its codes from
  these.

Results go to standard output, all else to standard error. RUST_LOG sets what is logged.

Examples:
  zkmw --zk zk1,zk2,zk3 master &
  zkmw --zk zk1,zk2,zk3 worker --id w7 &
  zkmw --zk zk1,zk2,zk3 submit 'echo hello'";
