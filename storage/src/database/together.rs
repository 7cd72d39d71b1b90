//! Calls that meet are answered by one statement: under load a round trip, and a commit, serve many requests. Nobody waits for
//! company: a call that is alone goes at once; those that come while others are under way go together behind them (as
//! databases do with commits). A statement begins behind every call that it answers, so none sees less than it would alone.

use std::future::Future;
use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::DatabaseError;

/// Calls in one statement at most.
const MOST: usize = 64;

/// Questions of one sort. Clones are one.
pub(super) struct Together<Q, A> {
    waiting: mpsc::Sender<Waiting<Q, A>>,
}

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone() }
    }
}

struct Waiting<Q, A> {
    question: Q,
    answer: oneshot::Sender<Result<A, DatabaseError>>,
}

impl<Q: Clone + Send + 'static, A: Send + 'static> Together<Q, A> {
    /// `ask` answers each of its questions, in their order; so many statements are under way at once. More are smaller, and
    /// none waits for a lock.
    pub(super) fn start<F, Asked>(at_once: usize, ask: F) -> Self
    where
        F: Fn(Vec<Q>) -> Asked + Send + Sync + 'static,
        Asked: Future<Output = Result<Vec<A>, DbErr>> + Send,
    {
        let (waiting, mut arriving) = mpsc::channel::<Waiting<Q, A>>(MOST);
        let ask = Arc::new(ask);
        tokio::spawn(async move {
            let under_way = Arc::new(Semaphore::new(at_once));
            while let Ok(place) = Arc::clone(&under_way).acquire_owned().await
                && let Some(first) = arriving.recv().await
            {
                // Requests that are being read just now come along; where there are none, this takes no time.
                tokio::task::yield_now().await;
                let mut some = vec![first];
                while some.len() < MOST
                    && let Ok(next) = arriving.try_recv()
                {
                    some.push(next);
                }
                let ask = Arc::clone(&ask);
                // On a task of its own, so that a panic ends it alone.
                tokio::spawn(async move {
                    answer(&*ask, some).await;
                    drop(place);
                });
            }
        });
        Self { waiting }
    }

    /// The answer to one question.
    pub(super) async fn ask(&self, question: Q) -> Result<A, DatabaseError> {
        let (answer, answered) = oneshot::channel();
        // What is not sent is not answered.
        let _ = self.waiting.send(Waiting { question, answer }).await;
        answered.await.unwrap_or_else(|_| {
            Err(DatabaseError::Unavailable { reason: "whoever asks the database has stopped".to_owned() })
        })
    }
}

async fn answer<Q: Clone, A, Asked>(ask: &(impl Fn(Vec<Q>) -> Asked + Sync), some: Vec<Waiting<Q, A>>)
where
    Asked: Future<Output = Result<Vec<A>, DbErr>> + Send,
{
    let questions: Vec<Q> = some.iter().map(|one| one.question.clone()).collect();
    let alone = questions.len() == 1;
    match ask(questions).await {
        Ok(answers) => {
            // Whoever does not listen any more needs no answer.
            some.into_iter().zip(answers).for_each(|(one, found)| drop(one.answer.send(Ok(found))));
        }
        // One of them is at fault: the others must not suffer for it.
        Err(error) if !alone && is_of_one(&error) => {
            for one in some {
                let found = ask(vec![one.question]).await.map(|mut found| found.pop());
                let found = found
                    .map_err(DatabaseError::from)
                    .and_then(|found| found.ok_or_else(|| DatabaseError::corrupt("statement", "it answered nothing")));
                drop(one.answer.send(found));
            }
        }
        Err(error) => {
            let reason = error.to_string();
            some.into_iter().for_each(|one| {
                drop(one.answer.send(Err(DatabaseError::Unavailable { reason: reason.clone() })));
            });
        }
    }
}

/// Whether the database refuses the data of a row: SQLSTATE classes 22 and 23. Nothing of the statement was done.
fn is_of_one(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return false;
    };
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn questions_that_meet_go_together_and_each_has_its_answer() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(0));
        let (seen, open) = (Arc::clone(&asked), Arc::clone(&gate));
        let together = Together::start(1, move |questions: Vec<u32>| {
            let (seen, open) = (Arc::clone(&seen), Arc::clone(&open));
            async move {
                seen.lock().unwrap().push(questions.len());
                let _held = open.acquire().await.unwrap();
                Ok(questions.into_iter().map(|question| question * 2).collect())
            }
        });
        let asking: Vec<_> = (0..200)
            .map(|question| {
                let together = together.clone();
                tokio::spawn(async move { (question, together.ask(question).await.unwrap()) })
            })
            .collect();
        gate.add_permits(1);
        for one in asking {
            let (question, answer) = one.await.unwrap();
            assert_eq!(answer, question * 2);
        }
        let asked = asked.lock().unwrap();
        assert_eq!(asked.iter().sum::<usize>(), 200);
        assert!(asked.iter().all(|number| *number <= MOST), "{asked:?}");
        assert!(asked.len() < 20, "{asked:?}");
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_away_for_all() {
        let together: Together<u32, u32> =
            Together::start(2, |_| async { Err(DbErr::Conn(RuntimeErr::Internal("away".to_owned()))) });
        let answers = futures::future::join_all((0..10).map(|question| together.ask(question))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Err(DatabaseError::Unavailable { .. }))));
    }
}
