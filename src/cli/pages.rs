//! What a package holds beside the program and is made from the command line's own description: completions and manual
//! pages.

use std::io::Write;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_mangen::Man;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::exit::{Code, Failure};

/// The helper of mount(8), which has a page of its own in the section of commands for administrators.
const HELPER_PAGE: &str = "mount.pailfs.8";
const EXAMPLE: &str = "s3://bucket /mnt pailfs _netdev,env_file=/etc/pailfs/bucket.env 0 0";

pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut shown(&Cli::command()), "pailfs", &mut text);
    print(&text)
}

/// A command without what is not for people: completions would offer it.
fn shown(command: &Command) -> Command {
    Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .version(command.get_version().unwrap_or_default().to_owned())
        .visible_aliases(command.get_all_aliases().map(str::to_owned))
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()))
        .subcommands(command.get_subcommands().filter(|inner| !inner.is_hide_set()).map(shown))
}

pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let pages = pages().map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    let Some(dir) = &args.dir else { return print(&pages[0].1) };
    let write = |name: &str, text: &[u8]| {
        std::fs::create_dir_all(dir).and_then(|()| std::fs::write(dir.join(name), text))
    };
    for (name, text) in &pages {
        write(name, text).map_err(|error| failed(&dir.join(name), &error))?;
    }
    Ok(())
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::Local, format!("cannot write {}: {error}", path.display()))
}

fn print(text: &[u8]) -> Result<(), Failure> {
    std::io::stdout().write_all(text).map_err(|error| Failure::new(Code::Local, error.to_string()))
}

/// Every page by its file's name, that of `pailfs` first.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages)?;
    let mut text = Vec::new();
    page_of(helper()).section("8").render(&mut text)?;
    // A line to copy is not to be filled and broken like the words around it.
    let text = String::from_utf8_lossy(&text).replace(EXAMPLE, &format!(".nf\n{EXAMPLE}\n.fi"));
    pages.push((HELPER_PAGE.to_owned(), text.into_bytes()));
    Ok(pages)
}

/// The page of a command, and those of its commands.
fn add(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
    let page = page_of(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    pages.push((page.get_filename(), text));
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        add(inner, pages)?;
    }
    Ok(())
}

fn page_of(command: Command) -> Man {
    // Without a date the other fields of the title would move into its place.
    Man::new(command).date(" ").source(concat!("pailfs ", env!("CARGO_PKG_VERSION"))).manual("pailfs")
}

/// How mount(8) calls us, described as a command.
fn helper() -> Command {
    let letter = |name: &'static str, letter, help: &'static str| {
        Arg::new(name).short(letter).action(ArgAction::SetTrue).help(help)
    };
    let options = "Options, with commas between. Each flag of pailfs-mount(1) but --foreground is one by its name, with _ or -: \
                   allow_other,metadata_ttl=10s,endpoint_url=https://s3.example.org. ro is read_only; env_file=FILE names a \
                   file of NAME=VALUE lines for the environment, such as AWS_ACCESS_KEY_ID. What mount(8) and systemd read \
                   themselves (_netdev, nofail, noauto, user, x-*, and flags of the kernel) is passed over; sync, dirsync \
                   and remount are refused, and so is what nobody knows. A comma in a value is written \\, or the value in \
                   double quotes; a backslash takes the next character as it is, or three octal digits.";
    let about = format!(
        "The type is pailfs, or fuse.pailfs by way of mount.fuse3(8). A line of /etc/fstab:\n\n{EXAMPLE}\n\n\
                 It returns when S3 has answered and the directory is live. umount(8) returns when everything is in S3; \
                 umount -l detaches at once. HOME is that of the user table where the environment has none, so ~/.aws and \
                 ~/.config/pailfs are found at boot; /etc/pailfs/config.toml is read where there is no configuration there. \
                 The codes it ends with are those of mount(8)."
    );
    Command::new("mount.pailfs")
        .version(env!("CARGO_PKG_VERSION"))
        .about("mount an S3 bucket from /etc/fstab")
        .long_about(about)
        .override_usage("mount.pailfs SOURCE DIR [-sfnvrw] [-o OPTION,OPTION=VALUE]")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(Arg::new("SOURCE").required(true).help(
            "s3://BUCKET[/PREFIX], s3:// for every bucket of the session, or @NAME from the configuration",
        ))
        .arg(Arg::new("DIR").required(true).help("The directory to mount it on"))
        .arg(letter("sloppy", 's', "Pass over options that nobody knows"))
        .arg(letter("fake", 'f', "Check the options and mount nothing"))
        .arg(letter("no-table", 'n', "Without effect, as there is no table to write"))
        .arg(letter("verbose", 'v', "Show the command that is run"))
        .arg(letter("read-only", 'r', "The same as -o ro"))
        .arg(letter("read-write", 'w', "The same as -o rw"))
        .arg(Arg::new("options").short('o').value_name("OPTION,OPTION=VALUE").help(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_completions() {
        let names: Vec<String> = pages().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[0], "pailfs.1");
        for name in [
            "pailfs-mount.1",
            "pailfs-umount.1",
            "pailfs-sessions-check.1",
            "pailfs-completions.1",
            HELPER_PAGE,
        ] {
            assert!(names.iter().any(|found| found == name), "{name} of {names:?}");
        }
        assert!(!names.iter().any(|name| name == "pailfs-man.1"), "{names:?}");
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }

    #[test]
    fn the_page_of_the_helper_tells_of_what_is_no_flag() {
        let pages = pages().unwrap();
        let page =
            String::from_utf8(pages.into_iter().find(|(name, _)| name == HELPER_PAGE).unwrap().1).unwrap();
        for word in ["env_file", "_netdev", "octal", "fstab"] {
            assert!(page.contains(word), "{word}: {page}");
        }
        assert!(page.contains(&format!("\n.nf\n{EXAMPLE}\n.fi\n")), "{page}");
    }
}
