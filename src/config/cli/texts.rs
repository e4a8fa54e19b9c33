//! Commands that only print a text made from the tree of commands: completions of shells, and man pages. They need no
//! settings and no ensemble.

use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::tree;
use crate::config::settings::Verb;

const COMPLETIONS: &str = "completions";
const MAN: &str = "man";
const SHELL: &str = "SHELL";
const COMMAND: &str = "COMMAND";

/// These commands, for the tree.
pub fn commands() -> [Command; 2] {
    let shell = Arg::new(SHELL).required(true).value_parser(["bash", "zsh", "fish"]);
    let completions = Command::new(COMPLETIONS)
        .about("Print a script that completes commands and options in a shell")
        .arg(shell.help("The shell"))
        .after_help(
            "Examples:\n  zkmw completions bash > /etc/bash_completion.d/zkmw\n  zkmw completions fish > \
             ~/.config/fish/completions/zkmw.fish",
        );
    let man = Command::new(MAN)
        .about("Print the man page of zkmw, or of one of its commands")
        .arg(Arg::new(COMMAND).value_parser(Verb::ALL.map(Verb::name)).help("The command"))
        .after_help("Examples:\n  zkmw man | man -l -\n  zkmw man submit > zkmw-submit.1");
    [completions, man]
}

/// The text of one of these commands; `None` if it is another command.
pub fn made(name: &str, matches: &ArgMatches) -> Option<String> {
    let mut text = Vec::new();
    match name {
        COMPLETIONS => {
            let shell: Shell = matches.get_one::<String>(SHELL)?.parse().ok()?;
            clap_complete::generate(shell, &mut tree(), "zkmw", &mut text);
        }
        MAN => {
            let page = man_page(matches.get_one::<String>(COMMAND).map(String::as_str))?;
            page.render(&mut text).ok()?;
        }
        _ => return None,
    }
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    Some(if name == MAN { text.chars().map(in_roff).collect() } else { text })
}

/// A character as roff reads it in any locale (groff_char(7)).
fn in_roff(c: char) -> String {
    if c.is_ascii() { c.to_string() } else { format!("\\[u{:04X}]", u32::from(c)) }
}

fn man_page(of: Option<&str>) -> Option<Man> {
    let tree = tree();
    let Some(of) = of else { return Some(Man::new(tree)) };
    let command = tree.find_subcommand(of)?.clone();
    let command = command.display_name(format!("zkmw-{of}")).bin_name(format!("zkmw {of}"));
    let command = command.version(env!("CARGO_PKG_VERSION")).disable_version_flag(true);
    Some(Man::new(command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cli::sort;
    use crate::config::settings::TABLE;
    use crate::exit;

    /// What the command line prints, with its exit code, and whether on standard output.
    fn print(words: &str) -> (i32, bool, String) {
        let words = words.split(' ').map(std::ffi::OsString::from);
        let Err(error) = sort(words) else { panic!("it prints a text") };
        (error.exit_code, error.to_stdout, error.message)
    }

    #[test]
    fn completions_know_every_command_and_option() {
        for shell in ["bash", "zsh", "fish"] {
            let (code, to_stdout, text) = print(&format!("zkmw completions {shell}"));
            assert_eq!((code, to_stdout), (exit::OK, true));
            let names = Verb::ALL.iter().map(|verb| verb.name());
            // Fish writes the name of an option without its dashes.
            let options = TABLE.iter().map(|setting| setting.spec().name);
            names.chain(options).for_each(|name| assert!(text.contains(name), "{shell}: {name}"));
        }
        let (code, to_stdout, text) = print("zkmw completions tcsh");
        assert!((code, to_stdout) == (exit::USAGE, false) && text.contains("bash, zsh, fish"), "{text}");
    }

    #[test]
    fn every_command_has_a_man_page() {
        let (code, _, text) = print("zkmw man");
        assert!(code == exit::OK && text.contains(".TH zkmw 1"), "{text}");
        for verb in Verb::ALL {
            let (code, _, text) = print(&format!("zkmw man {}", verb.name()));
            assert_eq!(code, exit::OK);
            assert!(text.is_ascii() && text.contains(&format!(".TH zkmw-{} 1", verb.name())), "{text}");
            for setting in TABLE.iter().map(|setting| setting.spec()).filter(|spec| spec.is_of(verb)) {
                let option = format!("\\-\\-{}", setting.name.replace('-', "\\-"));
                assert!(text.contains(&option), "{}: {option}", verb.name());
            }
        }
        assert_eq!(print("zkmw man nobody").0, exit::USAGE);
    }
}
