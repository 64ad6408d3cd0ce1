//! What the owner learns: from the configuration directory, and at the start from what an earlier
//! life of the agent remembered.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use api::k8s::dir::{Change, Directory};
use api::k8s::objects::{Kind, Object, ObjectKey};

use super::Owner;
use crate::agent::entry::Entry;
use crate::agent::netns::Netns;
use crate::agent::plan::{Due, Stage};
use crate::agent::pod::{Pod, PodName, Uid, Words};
use crate::agent::processes;
use crate::agent::store::Record;

impl Owner {
    /// Learns what there is: objects, what an earlier life remembered, what runs.
    pub(crate) async fn recover(&mut self, mut directory: Directory) -> io::Result<()> {
        let changes = directory.next().await;
        self.directory = Some(directory);
        let records: HashMap<Uid, Record> = self
            .store
            .load()?
            .into_iter()
            .map(|record| (Uid::new(&record.uid), record))
            .collect();
        for change in changes {
            self.learn(change);
        }
        for (uid, record) in records {
            self.remember(uid, record);
        }
        let lost = self.pods.iter().filter(|(_, entry)| {
            entry.netns.is_none() && (entry.verdict.is_ok() || entry.pod.is_marked())
        });
        let lost: HashSet<Uid> = lost.map(|(uid, _)| uid.clone()).collect();
        let proc = self.tools.proc();
        let found = tokio::task::spawn_blocking(move || processes::find(&proc, &lost)).await;
        for (uid, netns) in found.unwrap_or_default() {
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.netns = Some(Arc::new(netns));
            }
        }
        for entry in self.pods.values_mut() {
            if entry.stage == Stage::In || entry.pod.is_marked() {
                // Rules may have been lost, settings may have changed. ztunnel hears of the pod in
                // its snapshot, which it asks for as soon as it may connect: also of one that is to
                // leave the mesh, for its rules are still there.
                (entry.stage, entry.due, entry.announced) = (Stage::In, Due::Refresh, true);
            }
        }
        Ok(())
    }

    /// Puts a pod's record beside its object. Without an object the pod was deleted meanwhile.
    fn remember(&mut self, uid: Uid, record: Record) {
        let entry = self.pods.entry(uid.clone()).or_insert_with(|| {
            let mut entry = Entry::new(Pod::remembered(uid, &record.namespace, &record.name));
            entry.present = false;
            entry
        });
        entry.ips.clone_from(&record.ips);
        let netns = Netns::open(&record.netns).ok();
        entry.netns = netns
            .filter(|netns| netns.id() == record.netns_id())
            .map(Arc::new);
        entry.stage = if record.enrolled {
            Stage::In
        } else {
            Stage::Out
        };
    }

    pub(super) fn learn(&mut self, change: Change) {
        match change {
            Change::Set(Object::Namespace(namespace)) => {
                let name: Arc<str> = namespace
                    .metadata
                    .name
                    .as_deref()
                    .unwrap_or_default()
                    .into();
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.namespaces.insert(name.clone(), labels);
                self.judge_again(&name);
            }
            Change::Gone(ObjectKey {
                kind: Kind::Namespace,
                name,
                ..
            }) => {
                self.namespaces.remove(&name);
                self.judge_again(&name);
            }
            Change::Set(Object::Pod(object)) => {
                match Pod::on_node(&object, &self.tools.config.node_name) {
                    Some(pod) => self.learn_pod(pod),
                    None => {
                        let metadata = &object.metadata;
                        let namespace = metadata.namespace.as_deref().unwrap_or_default();
                        self.gone(&PodName::new(
                            namespace,
                            metadata.name.as_deref().unwrap_or_default(),
                        ));
                    }
                }
            }
            Change::Gone(ObjectKey {
                kind: Kind::Pod,
                namespace,
                name,
            }) => {
                self.gone(&PodName { namespace, name });
            }
            Change::Invalid(fault) => {
                let (file, line) = (fault.file.display(), fault.line);
                tracing::warn!(%file, line, reason = fault.reason, "a document is refused");
            }
            Change::Set(_) | Change::Gone(_) => {}
        }
    }

    fn learn_pod(&mut self, pod: Pod) {
        let none = Words::new();
        let verdict = self
            .eligibility
            .of(&pod, self.namespaces.get(&pod.namespace).unwrap_or(&none));
        let previous = self.names.insert(pod.pod_name(), pod.uid.clone());
        if let Some(previous) = previous.filter(|previous| *previous != pod.uid) {
            self.leave(&previous);
        }
        let entry = self
            .pods
            .entry(pod.uid.clone())
            .or_insert_with(|| Entry::new(pod.clone()));
        if entry.stage == Stage::In && entry.pod.captures_differently_from(&pod) {
            entry.due = entry.due.max(Due::Refresh);
        }
        if entry.pod.phase != pod.phase {
            entry.hurry(&mut self.retries);
        }
        entry.present = true;
        entry.pod = Arc::new(pod);
        entry.decide(verdict);
    }

    fn gone(&mut self, name: &PodName) {
        if let Some(uid) = self.names.remove(name) {
            self.leave(&uid);
        }
    }

    fn leave(&mut self, uid: &Uid) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.present = false;
            entry.answer(Err("the pod was deleted".to_owned()));
            entry.interrupt();
        }
    }

    fn judge_again(&mut self, namespace: &str) {
        let none = Words::new();
        let labels = self.namespaces.get(namespace).unwrap_or(&none);
        for entry in self
            .pods
            .values_mut()
            .filter(|entry| &*entry.pod.namespace == namespace)
        {
            let verdict = self.eligibility.of(&entry.pod, labels);
            entry.decide(verdict);
        }
    }
}
