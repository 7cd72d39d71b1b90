//! Named points at which a test ends this process as a power cut would: SIGKILL, with nothing said to anybody. There are none
//! unless the feature `failpoints` is on; release builds do not have it.
//!
//! A point is set by the variable `FAILPOINTS`, in the words of the crate `fail`: `chunk.commit.before=return` kills at the
//! first time, `3*off->return` behind it at the fourth.

/// Who passes a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// The API, in a call of a client.
    Api,
    /// A node, for each import.
    Node,
    /// A node, for an import that fails.
    NodeFails,
}

/// Every point, by the step of `docs/protocol.md` that it stands at.
pub const POINTS: [(&str, Passed); 34] = [
    ("create.before", Passed::Api),
    ("create.after", Passed::Api),
    ("complete.before", Passed::Api),
    ("complete.after", Passed::Api),
    ("start.after", Passed::Node),
    ("claim.before", Passed::Node),
    ("claim.after", Passed::Node),
    ("fence.after", Passed::Node),
    ("plan.before", Passed::Node),
    ("plan.made", Passed::Node),
    ("plan.after", Passed::Node),
    ("staging.after", Passed::Node),
    ("chunks.before", Passed::Node),
    ("chunks.after", Passed::Node),
    ("job.before", Passed::Node),
    ("job.after", Passed::Node),
    ("chunk.before", Passed::Node),
    ("chunk.claimed", Passed::Node),
    ("chunk.got", Passed::Node),
    ("chunk.parsed", Passed::Node),
    ("chunk.copied", Passed::Node),
    ("chunk.commit.before", Passed::Node),
    ("chunk.commit.after", Passed::Node),
    ("chunk.marked", Passed::Node),
    ("chunk.reported", Passed::Node),
    ("status.before", Passed::Node),
    ("status.after", Passed::Node),
    ("publish.before", Passed::Node),
    ("publish.commit.before", Passed::Node),
    ("publish.commit.after", Passed::Node),
    ("succeed.after", Passed::Node),
    ("error.after", Passed::NodeFails),
    ("abort.after", Passed::NodeFails),
    ("fail.after", Passed::NodeFails),
];

/// A point is passed.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_: &str) {}

/// A point is passed: where it is set, the process ends here.
#[cfg(feature = "failpoints")]
pub fn pass(point: &str) {
    static SCENARIO: std::sync::Once = std::sync::Once::new();
    // Reads the variable, and forgets the points when it is dropped.
    SCENARIO.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    debug_assert!(POINTS.iter().any(|(known, _)| *known == point), "{point} is not in the list");
    fail::eval(point, |_| {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
}
