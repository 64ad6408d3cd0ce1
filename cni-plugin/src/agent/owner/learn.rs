//! What the owner learns: from its source, and at the start from what an earlier
//! life of the agent remembered.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::Owner;
use crate::agent::entry::Entry;
use crate::agent::plan::{Due, Stage};
use crate::agent::pod::{Pod, PodName, Uid, Words};
use crate::agent::source::{News, Source};
use crate::agent::store::Record;

impl Owner {
    /// Learns what there is: objects, what an earlier life remembered, what runs.
    pub(crate) async fn recover(&mut self, mut source: Source) -> io::Result<()> {
        let news = source.first().await;
        self.asker = source.asker();
        self.source = Some(source);
        let records: HashMap<Uid, Record> = self
            .store
            .load()?
            .into_iter()
            .map(|record| (Uid::new(&record.uid), record))
            .collect();
        for news in news {
            self.learn(news);
        }
        for (uid, record) in records {
            self.remember(uid, record);
        }
        let lost = self.pods.iter().filter(|(_, entry)| {
            entry.netns.is_none() && (entry.verdict.is_ok() || entry.pod.is_marked())
        });
        let lost: Vec<Uid> = lost.map(|(uid, _)| uid.clone()).collect();
        let finder = &self.tools.finder;
        let found = futures_util::future::join_all(lost.iter().map(|uid| finder.find(uid))).await;
        for (uid, netns) in lost.iter().zip(found) {
            if let Some(netns) = netns.map(Arc::new)
                && let Some(entry) = self.pods.get_mut(uid)
                && self.tools.is_home_of(&entry.pod, &netns).await
            {
                entry.netns = Some(netns);
            }
        }
        for (uid, entry) in &mut self.pods {
            if entry.stage == Stage::In || entry.pod.is_marked() {
                // Rules may have been lost, settings may have changed. ztunnel hears of the pod in
                // its snapshot, which it asks for as soon as it may connect: also of one that is to
                // leave the mesh, for its rules are still there.
                (entry.stage, entry.due, entry.announced) = (Stage::In, Due::Refresh, true);
                entry.rules_stand = !self.tools.config.reconcile_rules;
                self.unsettled.insert(uid.clone());
            }
        }
        let before = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.stage == Stage::In);
        let before = before.flat_map(|(uid, entry)| {
            let ips = if entry.ips.is_empty() {
                &entry.pod.ips
            } else {
                &entry.ips
            };
            ips.iter().map(|ip| (*ip, uid.clone()))
        });
        self.tools.host.restore(before, self.unsettled.is_empty());
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
        let netns = self.tools.not_pods.pod(&record.netns).ok();
        entry.netns = netns
            .filter(|netns| netns.id() == record.netns_id())
            .map(Arc::new);
        entry.stage = if record.enrolled {
            Stage::In
        } else {
            Stage::Out
        };
    }

    pub(super) fn learn(&mut self, news: News) {
        match news {
            News::Namespace(name, labels) => {
                self.namespaces.insert(name.clone(), labels);
                self.judge_again(&name);
            }
            News::NamespaceGone(name) => {
                self.namespaces.remove(&name);
                self.judge_again(&name);
            }
            News::Pod(pod) => self.learn_pod(pod),
            News::PodGone(name, uid) => self.gone(&name, uid),
            News::Looked(name, outcome) => self.looked(&name, &outcome),
        }
    }

    /// Whether another pod has its name by now, of which a look-up beside the watch has told: of two objects of one name the one
    /// that is being deleted was there before, so what is told of it is late.
    fn is_replaced(&self, pod: &Pod) -> bool {
        let holder = self.names.get(&pod.pod_name());
        let other = holder.filter(|uid| **uid != pod.uid);
        let other = other.and_then(|uid| self.pods.get(uid));
        pod.deleting && other.is_some_and(|other| other.present && !other.pod.deleting)
    }

    fn learn_pod(&mut self, pod: Pod) {
        if self.is_replaced(&pod) {
            return;
        }
        let none = Words::new();
        let namespace = self.namespaces.get(&pod.namespace).unwrap_or(&none);
        let verdict = self.eligibility.of(&pod, namespace);
        let udp = pod.captures_udp(namespace);
        let previous = self.names.insert(pod.pod_name(), pod.uid.clone());
        if let Some(previous) = previous.filter(|previous| *previous != pod.uid) {
            self.deleted(&previous);
        }
        let entry = self
            .pods
            .entry(pod.uid.clone())
            .or_insert_with(|| Entry::new(pod.clone()));
        if entry.pod.phase != pod.phase {
            entry.hurry(&mut self.retries);
        }
        entry.learn(pod);
        entry.capture_udp(udp);
        entry.decide(verdict);
    }

    fn gone(&mut self, name: &PodName, uid: Option<Uid>) {
        let current = self.names.get(name).cloned();
        if uid.is_none() || current == uid {
            self.names.remove(name);
        }
        // Its successor of the same name stays.
        if let Some(uid) = uid.or(current) {
            self.deleted(&uid);
        }
    }

    fn deleted(&mut self, uid: &Uid) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.present = false;
            entry.answer(Err("the pod was deleted".to_owned()));
            entry.interrupt();
        }
    }

    pub(super) fn judge_again(&mut self, namespace: &str) {
        let none = Words::new();
        let labels = self.namespaces.get(namespace).unwrap_or(&none);
        for entry in self
            .pods
            .values_mut()
            .filter(|entry| &*entry.pod.namespace == namespace)
        {
            let verdict = self.eligibility.of(&entry.pod, labels);
            entry.capture_udp(entry.pod.captures_udp(labels));
            entry.decide(verdict);
        }
    }
}
