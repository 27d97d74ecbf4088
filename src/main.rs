fn main() -> std::process::ExitCode {
    pailfs::cli::main()
}
