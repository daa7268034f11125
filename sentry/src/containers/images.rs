//! Containers that are written to images, or made of them: by threads of their own, so that others are served meanwhile.
//!
//! An image that is whole is not yet kept: it has no name, or whoever waits for it has gone away. So a container whose image is whole stands
//! still until it is said which of both: then it ends, or goes on. What else is asked of a container at that time is done where it
//! changes nothing of the image, and refused where it would.

use std::sync::Arc;
use std::time::Instant;

use super::failure::{failure, invalid};
use super::passed::Passed;
use super::process::refusal;
use super::{Containers, ENDS, PAUSE, State, no_container};
use crate::checkpoint::{self, Names, Progress, Streams};
use crate::container::Container;
use crate::control::message::{Answer, Ask, ContainerNumber, Descriptor, Failure, FailureKind};
use crate::events::Waiter;
use crate::sync::lock;
use crate::task::seccomp::Program;
use crate::task::{ControlGroup, Pid};

/// Of a container.
#[derive(Default)]
pub(super) struct Image {
    progress: Arc<Progress>,
    /// Once it is whole: whether the container stood still before.
    whole: Option<bool>,
}

/// What of a container is to be saved.
struct Subject {
    container: Arc<Container>,
    group: Arc<ControlGroup>,
    first: Pid,
    streams: Streams,
    filter: Option<Arc<Program>>,
    named: Names,
    progress: Arc<Progress>,
}

impl Containers {
    /// Notes what takes long, before it is done. Whether it is: [`carry_out`](Self::carry_out) is for a thread of its own then.
    ///
    /// # Errors
    /// What the monitor is told: nothing is to be done.
    pub fn begin(&self, ask: &Ask) -> Result<bool, Failure> {
        let mut state = lock(&self.state);
        let number = match ask {
            Ask::Checkpoint(number, ..) if !state.containers.contains_key(number) => {
                return Err(no_container());
            }
            Ask::Checkpoint(number, ..) => *number,
            Ask::Create(plan) if plan.image.is_some() => plan.number,
            Ask::Remove(number) => return Ok(state.images.contains_key(number)),
            _ => return Ok(false),
        };
        state.is_idle(number)?;
        state.images.insert(number, Image::default());
        Ok(true)
    }

    /// What [`begin`](Self::begin) noted is not done after all.
    pub fn not_begun(&self, ask: &Ask) {
        match ask {
            Ask::Checkpoint(number, ..) => drop(lock(&self.state).images.remove(number)),
            Ask::Create(plan) => drop(lock(&self.state).images.remove(&plan.number)),
            _ => {}
        }
    }

    /// How far what is done with a container's image has come.
    pub(super) fn progress(&self, number: ContainerNumber) -> Answer {
        let state = lock(&self.state);
        Answer::Progress(state.images.get(&number).map_or(0, |image| image.progress.moved()))
    }

    /// Writes a container to a file. Where it does not go on at once, it stands still until [`settle`](Self::settle).
    pub(super) fn checkpoint(
        &self,
        number: ContainerNumber,
        image: Descriptor,
        goes_on: bool,
        mut passed: Passed,
    ) -> Result<Answer, Failure> {
        let begun = passed.take(image).and_then(|image| Ok((self.subject(number)?, image)));
        let (subject, image) = begun.inspect_err(|_| {
            lock(&self.state).images.remove(&number);
        })?;
        let (tasks, group) = (&self.kernel.tasks, &subject.group);
        let was_frozen = group.frozen();
        let saved = if group.freeze(tasks, true) {
            let subject = checkpoint::Subject {
                kernel: &self.kernel,
                container: &subject.container,
                group,
                first: subject.first,
                streams: &subject.streams,
                filter: subject.filter.as_ref(),
                named: &subject.named,
                progress: &subject.progress,
            };
            checkpoint::save(&subject, image).map_err(|error| refusal(&error))
        } else {
            Err(failure(FailureKind::Failed, "some of its tasks do not stand still"))
        };
        let saved = {
            let mut state = lock(&self.state);
            // Who gave it up a moment ago knows nothing of an image.
            let saved = saved.and_then(|()| is_wanted(&subject.progress));
            match state.images.get_mut(&number) {
                Some(image) if saved.is_ok() && !goes_on => {
                    image.whole = Some(was_frozen);
                    return Ok(Answer::Done);
                }
                _ => drop(state.images.remove(&number)),
            }
            saved
        };
        if !was_frozen {
            group.freeze(tasks, false);
        }
        saved.map(|()| Answer::Done)
    }

    fn subject(&self, number: ContainerNumber) -> Result<Subject, Failure> {
        let state = lock(&self.state);
        let found = state.containers.get(&number).ok_or_else(no_container)?;
        let first = state.processes.get(&found.first).map(|process| &process.group);
        let first = first.filter(|first| first.exit_status().is_none() && found.waiting.is_none());
        Ok(Subject {
            container: Arc::clone(&found.container),
            group: Arc::clone(&found.group),
            first: first.ok_or_else(|| invalid("the container does not run"))?.pid(),
            streams: found.streams.clone(),
            filter: found.filter.clone(),
            named: state.named.clone(),
            progress: state.progress_of(number)?,
        })
    }

    /// Ends a container whose image is kept, or lets it go on. One that is still being written is given up.
    pub(super) fn settle(&self, number: ContainerNumber, kept: bool) -> Result<Answer, Failure> {
        let (group, was_frozen) = {
            let mut state = lock(&self.state);
            let missing = || invalid("no image of the container waits to be kept");
            let image = state.images.get(&number).ok_or_else(missing)?;
            let Some(was_frozen) = image.whole else {
                image.progress.give_up();
                return if kept { Err(missing()) } else { Ok(Answer::Done) };
            };
            state.images.remove(&number);
            let found = state.containers.get(&number).ok_or_else(no_container)?;
            (Arc::clone(&found.group), was_frozen)
        };
        if kept {
            // Dead before they could go on.
            group.close();
            self.kill(&group);
        }
        if kept || !was_frozen {
            group.freeze(&self.kernel.tasks, false);
        }
        Ok(Answer::Done)
    }

    /// Gives up what is done with a container's image, and waits until nothing is.
    pub(super) fn call_off(&self, number: ContainerNumber) -> Result<(), Failure> {
        let (begin, nobody) = (Instant::now(), Waiter::new());
        loop {
            let mut state = lock(&self.state);
            match state.images.get(&number) {
                None => return Ok(()),
                Some(Image { whole: Some(_), .. }) => drop(state.images.remove(&number)),
                Some(image) => image.progress.give_up(),
            }
            drop(state);
            if begin.elapsed() > ENDS {
                return Err(failure(FailureKind::Failed, "what is done with its image does not end"));
            }
            nobody.wait(Some(Instant::now() + PAUSE));
        }
    }
}

pub(super) fn is_wanted(progress: &Progress) -> Result<(), Failure> {
    progress.is_wanted().map_err(|error| refusal(&error.into()))
}

impl State {
    /// Refuses what would change a container of which an image is written or read.
    pub(super) fn is_idle(&self, number: ContainerNumber) -> Result<(), Failure> {
        match self.images.contains_key(&number) {
            true => Err(failure(
                FailureKind::Failed,
                "an image of the container is being written or read: try again when that is done",
            )),
            false => Ok(()),
        }
    }

    pub(super) fn progress_of(&self, number: ContainerNumber) -> Result<Arc<Progress>, Failure> {
        let image = self.images.get(&number);
        image.map(|image| Arc::clone(&image.progress)).ok_or_else(|| invalid("it was not begun"))
    }
}
