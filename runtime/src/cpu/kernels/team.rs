//! Threads that share the tasks of one loop after another.
//!
//! A step launches hundreds of kernels of some tens of microseconds, so starting a loop must
//! cost about one: the calling thread works too, helpers that have just worked spin for a
//! moment before they sleep, and nobody waits for a helper that has not arrived. Which thread
//! runs which task is unspecified.

use std::any::Any;
use std::fmt;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Looks at what it waits for before a thread gives up its processor: some 20 microseconds.
const SPINS: usize = 500;

/// A loop being run. Lives on the stack of the thread that runs it.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    count: usize,
    /// The first task that nobody has taken.
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    /// Takes tasks until there are none.
    fn work(&self) {
        loop {
            let i = self.next.fetch_add(1, SeqCst);
            if i >= self.count {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.task)(i))) {
                self.next.store(self.count, SeqCst);
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }
}

/// What the threads share.
struct Shared {
    /// The loop being run, or null.
    job: AtomicPtr<Job<'static>>,
    /// Number of loops begun.
    begun: AtomicU64,
    /// Helpers that may hold a reference to the job.
    inside: AtomicUsize,
    /// Helpers asleep, or about to look whether they should be.
    asleep: AtomicUsize,
    quit: AtomicBool,
    gate: Mutex<()>,
    wake: Condvar,
}

/// The calling thread and its helpers.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held while a loop runs: one at a time.
    running: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// A team of `threads` threads, the caller included, or fewer should the system refuse.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(ptr::null_mut()),
            begun: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
            gate: Mutex::new(()),
            wake: Condvar::new(),
        });
        let start = |i: usize| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("kernels {i}")).spawn(move || shared.help()).ok()
        };
        let helpers = (1..threads).map_while(start).collect();
        Self { shared, helpers, running: Mutex::new(()) }
    }

    /// Number of threads, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `task(0..count)`, on the calling thread alone if another loop is running. A panic
    /// of a task is passed on; tasks not yet taken are dropped then.
    pub(super) fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let running = self.running.try_lock();
        if self.helpers.is_empty() || running.is_err() {
            return (0..count).for_each(task);
        }
        let job = Job { task, count, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        let shared = &*self.shared;
        shared.job.store(ptr::from_ref(&job).cast_mut().cast(), SeqCst);
        shared.begun.fetch_add(1, SeqCst);
        if shared.asleep.load(SeqCst) > 0 {
            drop(lock(&shared.gate));
            shared.wake.notify_all();
        }
        // Does not unwind: the tasks' panics are caught.
        job.work();
        shared.job.store(ptr::null_mut(), SeqCst);
        // From here on no helper finds the job. One that found it before has counted itself
        // first, and is waited for: the job outlives every reference to it.
        let mut looks = 0;
        while shared.inside.load(SeqCst) > 0 {
            looks += 1;
            if looks < SPINS { spin_loop() } else { thread::yield_now() }
        }
        drop(running);
        let panic = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// What a helper does all its life.
    #[expect(unsafe_code, reason = "the job lives on another thread's stack")]
    fn help(&self) {
        let mut seen = 0;
        while !self.quit.load(SeqCst) {
            seen = self.next_job(seen);
            self.inside.fetch_add(1, SeqCst);
            let job = self.job.load(SeqCst);
            // SAFETY: `Team::run` takes the pointer back before it waits for `inside` to be
            // zero. This thread counted itself before it read the pointer; had the pointer
            // been taken back before, it would be null. So the job is alive until this
            // thread leaves.
            if let Some(job) = unsafe { job.as_ref() } {
                job.work();
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for a loop after number `seen`, or the end.
    fn next_job(&self, seen: u64) -> u64 {
        let done = || self.begun.load(SeqCst) != seen || self.quit.load(SeqCst);
        for _ in 0..SPINS {
            if done() {
                return self.begun.load(SeqCst);
            }
            spin_loop();
        }
        // Counted before looking again, so that whoever begins a loop later sees this helper
        // and, taking the gate, finds it waiting.
        self.asleep.fetch_add(1, SeqCst);
        let mut gate = lock(&self.gate);
        while !done() {
            gate = self.wake.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        drop(gate);
        self.asleep.fetch_sub(1, SeqCst);
        self.begun.load(SeqCst)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        drop(lock(&self.shared.gate));
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks; it has none of its own.
            let _ = helper.join();
        }
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_many_loops() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            for round in 0..2000usize {
                let count = round % 37;
                let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                team.run(count, &|i| {
                    runs[i].fetch_add(1, SeqCst);
                });
                assert!(runs.iter().all(|n| n.load(SeqCst) == 1), "{threads} threads, round {round}");
            }
        }
    }

    #[test]
    fn loops_inside_loops_and_of_several_callers_run() {
        let team = Team::new(3);
        let total = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..100 {
                        team.run(4, &|_| {
                            team.run(5, &|_| {
                                total.fetch_add(1, SeqCst);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 100 * 4 * 5);
    }

    #[test]
    fn panics_reach_the_caller_and_leave_the_team_usable() {
        let team = Team::new(2);
        for _ in 0..50 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(8, &|i| assert!(i != 5, "task {i}"));
            }));
            assert!(caught.is_err());
            let count = AtomicUsize::new(0);
            team.run(8, &|_| {
                count.fetch_add(1, SeqCst);
            });
            assert_eq!(count.into_inner(), 8);
        }
    }
}
