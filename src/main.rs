//! argv to [`pailfs::cli`], and nothing else.

fn main() -> std::process::ExitCode {
    pailfs::cli::main()
}
