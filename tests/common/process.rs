//! Processes: started with nothing in their environment but what the test gives them, ended with the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use super::{free_port, until, until_within};

/// The last lines of a log that a failing test prints.
const LOG_TAIL: usize = 60;

/// The settings of one process.
pub type Env = Vec<(String, String)>;

/// `NAME` => `LONGSHORE_NAME`, and its value.
pub fn settings<const N: usize>(pairs: [(&str, &str); N]) -> Env {
    pairs.iter().map(|(name, value)| (format!("LONGSHORE_{name}"), (*value).to_owned())).collect()
}

/// A command that knows nothing of the environment of the tests.
pub fn clean_command(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(folder).stdin(Stdio::null());
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// The real binary.
pub fn longshore(folder: &Path) -> Command {
    clean_command(env!("CARGO_BIN_EXE_longshore"), folder)
}

/// Runs a `longshore` command to its end.
pub async fn run_to_end(folder: &Path, arguments: &[&str], env: &Env) -> Output {
    let mut command = longshore(folder);
    command.args(arguments).envs(env.iter().map(|(name, value)| (name, value)));
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = tokio::time::timeout(super::DEADLINE, output).await;
    output.unwrap_or_else(|_| panic!("longshore {arguments:?} did not end")).unwrap()
}

/// A process that a test started. It ends with the test; when that fails, its log is printed.
pub struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    env: Env,
    folder: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// Where its API listens.
    pub base: String,
}

impl Process {
    /// Any program; its output goes to `folder/name.log`.
    pub fn spawn(name: &str, program: impl Into<PathBuf>, arguments: &[&str], env: Env, folder: &Path) -> Self {
        let mut process = Self {
            name: name.to_owned(),
            program: program.into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            env,
            folder: folder.to_owned(),
            log: folder.join(format!("{name}.log")),
            child: None,
            base: String::new(),
        };
        process.start();
        process
    }

    /// A lasting role of `longshore` that listens on a port of its own.
    pub fn longshore(name: &str, role: &str, env: Env, folder: &Path) -> Self {
        Self::of_program(env!("CARGO_BIN_EXE_longshore"), name, role, env, folder)
    }

    /// The same of another build of it.
    pub fn of_program(program: &str, name: &str, role: &str, mut env: Env, folder: &Path) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        env.push(("LONGSHORE_LISTEN".to_owned(), listen.clone()));
        let mut process = Self::spawn(name, program, &[role], env, folder);
        process.base = format!("http://{listen}");
        process
    }

    /// Starts it, once more where it ended. The log goes on.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = clean_command(&self.program, &self.folder);
        command
            .args(&self.arguments)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.program)));
    }

    /// Another setting, from the next start on; `None` takes it away.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        self.env.retain(|(known, _)| known != name);
        self.env.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process that runs").id()
    }

    /// Everything it ever wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// `Some` where it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// Whether it was started and not ended by the test.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.end().await
    }

    /// Any signal, by its name.
    pub fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.pid().to_string());
        assert!(Command::new("kill").args([&signal, &pid]).status().unwrap().success());
    }

    /// Waits until it ends by itself.
    pub async fn end(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let status = until_within(Duration::from_secs(60), &what, async || self.ended()).await;
        self.child = None;
        status
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let url = format!("{}/readyz", self.base);
        until("the process is ready", async || {
            let ended = self.ended();
            assert!(ended.is_none(), "{} ended instead of becoming ready: {ended:?}", self.name);
            let answer = http.get(&url).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Waits until its log holds a text.
    pub async fn says(&self, text: &str) {
        until(&format!("the log of {} holds '{text}'", self.name), async || self.log().contains(text).then_some(()))
            .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_TAIL);
            println!("---- the end of the log of {} ----\n{}\n----", self.name, lines[from..].join("\n"));
        }
    }
}
