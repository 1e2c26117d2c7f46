//! The jobs that wait for the lanes. Within a lane the tenants take turns, one request each, so that a tenant with thousands
//! of waiting requests delays another tenant by one request. The number is bounded over all lanes. When the bound is
//! reached, the tenant with the most waiting rows loses its latest request. A tenant that is alone may reach the bound.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use foldhash::fast::RandomState;

use crate::domain::caller::Tenant;

use super::job::Job;

/// The queue is also limited to this many rows for each request of its capacity, which bounds the memory of bulk
/// requests.
const ROWS_PER_JOB: usize = 20;

#[derive(Debug)]
pub struct Waiting {
    pub lanes: Vec<Turns>,
    /// The load of each tenant over all lanes. Tenants without waiting requests are absent.
    loads: HashMap<Tenant, Load, RandomState>,
    total: Load,
    jobs_max: usize,
}

/// The requests that wait for one lane.
#[derive(Debug, Default)]
pub struct Turns {
    jobs: HashMap<Tenant, VecDeque<Job>, RandomState>,
    /// The tenants with waiting requests, in the order of their turns.
    order: VecDeque<Tenant>,
    /// No more jobs will arrive.
    pub is_closed: bool,
    /// The lane has ended.
    pub is_dead: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    rows: usize,
    jobs: usize,
}

impl Waiting {
    pub fn new(lanes: usize, jobs_max: usize) -> Self {
        Self {
            lanes: (0..lanes).map(|_| Turns::default()).collect(),
            loads: HashMap::default(),
            total: Load::default(),
            jobs_max,
        }
    }

    /// The earliest deadline among the next requests of all tenants, which is nearly that of the oldest waiting request.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        let next = self.lanes.iter().flat_map(|turns| turns.jobs.values()).filter_map(VecDeque::front);
        next.map(|job| job.request.deadline).min()
    }

    /// Number of waiting jobs over all lanes.
    pub fn jobs(&self) -> usize {
        self.total.jobs
    }

    /// Adds a job. Returns the jobs to refuse: the latest ones of tenants with more waiting rows, or this job.
    pub fn put(&mut self, lane: usize, job: Job) -> Vec<Job> {
        let mut refused = Vec::new();
        while !self.has_capacity_for(&job) {
            match self.evict_for(&job) {
                Some(evicted) => refused.push(evicted),
                None => {
                    refused.push(job);
                    return refused;
                }
            }
        }
        self.add(lane, job);
        refused
    }

    /// Takes the next job in turn. Its tenant moves to the end of the order.
    pub fn take(&mut self, lane: usize) -> Option<Job> {
        let turns = &mut self.lanes[lane];
        let tenant = turns.order.pop_front()?;
        let jobs = turns.jobs.get_mut(&tenant)?;
        let job = jobs.pop_front()?;
        if jobs.is_empty() {
            turns.jobs.remove(&tenant);
        } else {
            turns.order.push_back(tenant);
        }
        self.subtract(&job);
        Some(job)
    }

    /// An empty queue accepts a job of any size.
    fn has_capacity_for(&self, job: &Job) -> bool {
        let fits = self.total.rows + job.rows() <= self.jobs_max * ROWS_PER_JOB || self.total.jobs == 0;
        self.total.jobs < self.jobs_max && fits
    }

    fn add(&mut self, lane: usize, job: Job) {
        let tenant = &job.request.tenant;
        self.total.add(&job);
        self.loads.entry(tenant.clone()).or_default().add(&job);
        let turns = &mut self.lanes[lane];
        match turns.jobs.get_mut(tenant) {
            Some(jobs) => jobs.push_back(job),
            None => {
                turns.order.push_back(tenant.clone());
                turns.jobs.insert(tenant.clone(), VecDeque::from([job]));
            }
        }
    }

    /// Removes the latest job of the tenant with the highest load. `None` if that is the tenant of `job` itself.
    fn evict_for(&mut self, job: &Job) -> Option<Job> {
        let (heaviest, most) = self.loads.iter().max_by_key(|(_, load)| **load)?;
        let mut own = self.loads.get(&job.request.tenant).copied().unwrap_or_default();
        own.add(job);
        if *most <= own {
            return None;
        }
        let heaviest = heaviest.clone();
        let waiting_in = |turns: &Turns| turns.jobs.get(&heaviest).map_or(0, VecDeque::len);
        let turns = self.lanes.iter_mut().max_by_key(|turns| waiting_in(turns))?;
        let jobs = turns.jobs.get_mut(&heaviest)?;
        let evicted = jobs.pop_back()?;
        if jobs.is_empty() {
            turns.jobs.remove(&heaviest);
            turns.order.retain(|tenant| *tenant != heaviest);
        }
        self.subtract(&evicted);
        Some(evicted)
    }

    /// Subtracts a job that no longer waits.
    fn subtract(&mut self, job: &Job) {
        self.total.subtract(job);
        if let Some(load) = self.loads.get_mut(&job.request.tenant) {
            load.subtract(job);
            if load.jobs == 0 {
                self.loads.remove(&job.request.tenant);
            }
        }
    }
}

impl Turns {
    /// The next job in turn.
    pub fn peek(&self) -> Option<&Job> {
        self.jobs.get(self.order.front()?)?.front()
    }
}

impl Load {
    fn add(&mut self, job: &Job) {
        self.rows += job.rows();
        self.jobs += 1;
    }

    fn subtract(&mut self, job: &Job) {
        self.rows -= job.rows();
        self.jobs -= 1;
    }
}
