//! The values that labels may have: few, fixed, and known at the start, so that each series is there from the first scrape.

/// An enum whose variants are label values.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident => $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$about])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The label's value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

label! {
    /// What a process needs beside itself.
    Dependency {
        /// The control database.
        Database => "database",
        /// The database that rows go to.
        Destination => "destination",
        /// The object storage.
        Objects => "objects",
        /// NATS, or the bus inside the process.
        Bus => "bus",
    }
}

label! {
    /// What was wrong with a call to a dependency.
    DependencyFault {
        /// It did not answer, or not in time, or said that it is overloaded.
        Unavailable => "unavailable",
        /// It answered what trying again does not change: credentials, rights, a missing bucket.
        Refused => "refused",
        /// It holds what this version cannot read.
        Corrupt => "corrupt",
        /// Staged rows are gone.
        StagingLost => "staging_lost",
    }
}

label! {
    /// A part of an import that takes time.
    Step {
        /// The owner looks at the object, the destination and the columns.
        Plan => "plan",
        /// The owner reads the object once for its record boundaries.
        Scan => "scan",
        /// A worker reads a range of a large object for it.
        ScanRange => "scan_range",
        /// A worker gets a chunk's bytes.
        Fetch => "fetch",
        /// A worker parses them.
        Parse => "parse",
        /// A worker writes rows, rejects and ledger row, and commits.
        Write => "write",
        /// The owner moves the staged rows to the table, in one transaction.
        Publish => "publish",
        /// The owner closes the fence and drops what was staged.
        Abort => "abort",
    }
}

label! {
    /// What became of a chunk job.
    JobOutcome {
        /// The chunk is committed.
        Finished => "finished",
        /// Nothing to do: another worker has it, or it is done, or the job is of an older epoch.
        NotOurs => "not_ours",
        /// The owner has to look: wider types, a reason to fail, staging that is gone.
        LookAgain => "look_again",
        /// The process stops, or lost its claim: somebody else does it.
        HandedBack => "handed_back",
    }
}

label! {
    /// Why an import is read again from the start, by itself.
    AttemptReason {
        /// An inferred column was too narrow.
        Widened => "widened",
        /// Staged work was lost.
        StagingLost => "staging_lost",
        /// The table that it was going to make appeared meanwhile.
        TableAppeared => "table_appeared",
    }
}

label! {
    /// A queue of the bus.
    QueueName {
        /// Storage events.
        Events => "events",
        /// Imports that wait for an owner.
        Imports => "imports",
        /// Chunks that wait for a worker.
        Chunks => "chunks",
    }
}

label! {
    /// Where a message of a queue stands.
    MessageState {
        /// Nobody has it.
        Waiting => "waiting",
        /// Delivered, and not answered for yet; handed back ones count until they are delivered again.
        Delivered => "delivered",
    }
}
