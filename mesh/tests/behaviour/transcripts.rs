//! Recorded conversations of delta discovery, replayed against both ends.
//!
//! Server: the recorded requests go in, and what the recorded answers show of the mesh becomes the
//! catalog just in time; our answers must name the same resources in the same versions. Client:
//! the recorded responses go in; our requests must be the recorded ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail, Node, Resource};
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, security, workload as wire};
use mesh::{
    Catalog, Changed, Entry, Mesh, Reply, Session, Subscription, Update, WORKLOAD_TYPE, Wish,
};
use prost::Message;
use serde_json::Value;

use crate::golden::{message, recorded};

// ---------------------------------------------------------------- reading

fn lines(file: &str) -> Vec<Value> {
    recorded(&format!("xds/{file}.jsonl"))
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn type_url(line: &Value) -> String {
    format!("type.googleapis.com/{}", line["type"].as_str().unwrap())
}

fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

fn is_request(line: &Value) -> bool {
    line["dir"] == "client->server"
}

fn is_response(line: &Value) -> bool {
    line["dir"] == "server->client"
}

fn request(line: &Value) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: line.get("node").map(node),
        type_url: type_url(line),
        resource_names_subscribe: texts(&line["subscribe"]),
        resource_names_unsubscribe: texts(&line["unsubscribe"]),
        initial_resource_versions: serde_json::from_value(
            line["initial_resource_versions"].clone(),
        )
        .unwrap_or_default(),
        response_nonce: line["response_nonce"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        error_detail: line.get("error_detail").map(|error| ErrorDetail {
            code: error["code"].as_i64().unwrap() as i32,
            message: error["message"].as_str().unwrap().to_owned(),
            details: Vec::new(),
        }),
    }
}

fn node(json: &Value) -> Node {
    use prost_types::value::Kind;
    let text = |text: &Value| prost_types::Value {
        kind: Some(Kind::StringValue(text.as_str().unwrap().to_owned())),
    };
    let fields = json["metadata"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (key.clone(), text(value)))
        .collect();
    Node {
        id: json["id"].as_str().unwrap().to_owned(),
        cluster: String::new(),
        metadata: Some(prost_types::Struct { fields }),
    }
}

fn encoded(type_url: &str, json: &Value) -> Vec<u8> {
    let json = json.clone();
    match type_url {
        ADDRESS_TYPE => message::<wire::Address>("istio.workload.Address", json).encode_to_vec(),
        WORKLOAD_TYPE => message::<wire::Workload>("istio.workload.Workload", json).encode_to_vec(),
        AUTHORIZATION_TYPE => {
            message::<security::Authorization>("istio.security.Authorization", json).encode_to_vec()
        }
        other => panic!("{other}"),
    }
}

// ---------------------------------------------------------------- server

/// What the transcript has shown of the mesh so far.
#[derive(Default)]
struct Shown(BTreeMap<String, BTreeMap<Arc<str>, Arc<Entry>>>);

impl Catalog for Shown {
    fn version(&self) -> &str {
        "1"
    }

    fn serves(&self, type_url: &str) -> bool {
        [ADDRESS_TYPE, WORKLOAD_TYPE, AUTHORIZATION_TYPE].contains(&type_url)
    }

    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        Box::new(self.0.get(type_url).into_iter().flat_map(BTreeMap::values))
    }

    fn named(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>> {
        self.0.get(type_url)?.get(name)
    }
}

impl Shown {
    /// Takes over what a response shows; returns the names.
    fn see(&mut self, line: &Value) -> BTreeSet<Arc<str>> {
        let type_url = type_url(line);
        let mut names = BTreeSet::new();
        for resource in line["resources"].as_array().unwrap() {
            let entry = entry(&type_url, resource);
            names.insert(entry.name.clone());
            self.0
                .entry(type_url.clone())
                .or_default()
                .insert(entry.name.clone(), Arc::new(entry));
        }
        for gone in texts(&line["removed_resources"]) {
            self.0.entry(type_url.clone()).or_default().remove(&*gone);
            names.insert(gone.into());
        }
        names
    }

    /// What the client holds in a version that the answer does not send again is there as well.
    fn see_held(&mut self, request: &DeltaDiscoveryRequest, answer: &Value) {
        let removed = texts(&answer["removed_resources"]);
        for (name, version) in &request.initial_resource_versions {
            let known = self.named(&request.type_url, name).is_some();
            if !known && !removed.contains(name) {
                let name: Arc<str> = Arc::from(&**name);
                let entry = Entry {
                    name: name.clone(),
                    version: Arc::from(&**version),
                    encoded: Default::default(),
                    aliases: [].into(),
                    node: None,
                    services: [].into(),
                };
                self.0
                    .entry(request.type_url.clone())
                    .or_default()
                    .insert(name, Arc::new(entry));
            }
        }
    }
}

fn entry(type_url: &str, resource: &Value) -> Entry {
    let content = &resource["resource"];
    let workload = content.get("workload").unwrap_or(content);
    let encoded = encoded(type_url, content);
    // Policies are recorded without a version; ours have one like everything else.
    let version = match resource["version"].as_str().unwrap() {
        "" => format!(
            "{:x}",
            encoded.iter().fold(7u64, |hash, byte| hash
                .wrapping_mul(31)
                .wrapping_add(u64::from(*byte)))
        ),
        version => version.to_owned(),
    };
    let services = workload.get("services").and_then(Value::as_object);
    Entry {
        name: Arc::from(resource["name"].as_str().unwrap()),
        version: version.into(),
        encoded: encoded.into(),
        aliases: texts(resource.get("aliases").unwrap_or(&Value::Null))
            .into_iter()
            .map(Arc::from)
            .collect(),
        node: workload.get("node").and_then(Value::as_str).map(Arc::from),
        services: services
            .into_iter()
            .flatten()
            .map(|(name, _)| Arc::from(&**name))
            .collect(),
    }
}

/// What a client holds different after a reply: resource → version or gone.
type Outcome = BTreeMap<(String, String), Option<String>>;

fn recorded_outcome<'a>(responses: impl IntoIterator<Item = &'a Value>) -> Outcome {
    let mut outcome = Outcome::new();
    for line in responses {
        for resource in line["resources"].as_array().unwrap() {
            let version = entry(&type_url(line), resource).version.to_string();
            outcome.insert(
                (
                    type_url(line),
                    resource["name"].as_str().unwrap().to_owned(),
                ),
                Some(version),
            );
        }
        for name in texts(&line["removed_resources"]) {
            outcome.insert((type_url(line), name), None);
        }
    }
    outcome
}

fn our_outcome<'a>(replies: impl IntoIterator<Item = &'a Reply>) -> Outcome {
    let mut outcome = Outcome::new();
    for reply in replies {
        for entry in &reply.resources {
            outcome.insert(
                (reply.type_url.to_string(), entry.name.to_string()),
                Some(entry.version.to_string()),
            );
        }
        for name in &reply.removed {
            outcome.insert((reply.type_url.to_string(), name.to_string()), None);
        }
    }
    outcome
}

/// Replays the recorded requests; returns what differs, in words.
fn replay_to_server(file: &str) -> Vec<String> {
    let mut differences = Vec::new();
    let mut catalog = Shown::default();
    let mut session = Session::new();
    let lines = lines(file);
    let segments = lines.split(|line| !is_request(line) && !is_response(line));
    let events = lines
        .iter()
        .filter(|line| !is_request(line) && !is_response(line));
    for (event, segment) in std::iter::once(&Value::Null).chain(events).zip(segments) {
        let about = event["event"].as_str().unwrap_or("at first");
        let mut pushes: Vec<&Value> = segment.iter().filter(|line| is_response(line)).collect();
        for line in segment.iter().filter(|line| is_request(line)) {
            let request = request(line);
            let asks =
                !session.follows(&request.type_url) || !request.resource_names_subscribe.is_empty();
            let asks = asks || !request.resource_names_unsubscribe.is_empty();
            let answer = pushes
                .iter()
                .position(|push| push["type"] == line["type"])
                .filter(|_| asks);
            let answer = answer.map(|at| pushes.remove(at));
            if let Some(answer) = answer {
                catalog.see(answer);
                catalog.see_held(&request, answer);
            }
            let ours = session.on_request(&catalog, request).reply;
            match (answer, &ours) {
                (None, None) => {}
                (Some(answer), Some(ours)) if recorded_outcome([answer]) == our_outcome([ours]) => {
                    check_aliases(answer, ours);
                }
                (Some(_), None) => differences.push(format!("{about}: answered; ours is silent")),
                (None, Some(ours)) => {
                    differences.push(format!("{about}: silent; ours: {:?}", told(ours)))
                }
                (Some(answer), Some(ours)) => {
                    let much = recorded_outcome([answer]).len();
                    differences.push(format!("{about}: {much} names; ours: {:?}", told(ours)));
                }
            }
        }
        differences.extend(
            replay_pushes(&mut session, &mut catalog, &pushes)
                .map(|ours| format!("{about}: {ours}")),
        );
    }
    differences
}

fn replay_pushes(session: &mut Session, catalog: &mut Shown, pushes: &[&Value]) -> Option<String> {
    let mut changed: BTreeMap<String, BTreeSet<Arc<str>>> = BTreeMap::new();
    for push in pushes {
        changed
            .entry(type_url(push))
            .or_default()
            .extend(catalog.see(push));
    }
    let changed: Vec<(String, Vec<Arc<str>>)> = changed
        .into_iter()
        .map(|(type_url, names)| (type_url, names.into_iter().collect()))
        .collect();
    let changed: Vec<_> = changed
        .iter()
        .map(|(type_url, names)| Changed { type_url, names })
        .collect();
    let ours = session.on_push(catalog, &changed);
    assert_policies_frame_addresses(&ours);
    (recorded_outcome(pushes.iter().copied()) != our_outcome(&ours))
        .then(|| format!("ours: {:?}", ours.iter().map(told).collect::<Vec<_>>()))
}

fn told(reply: &Reply) -> (Vec<&str>, Vec<&str>) {
    (
        reply.resources.iter().map(|entry| &*entry.name).collect(),
        reply.removed.iter().map(|name| &**name).collect(),
    )
}

fn check_aliases(answer: &Value, ours: &Reply) {
    let ours = ours.clone().into_response();
    for resource in answer["resources"].as_array().unwrap() {
        let same = ours
            .resources
            .iter()
            .find(|ours| ours.name == resource["name"].as_str().unwrap())
            .unwrap();
        assert_eq!(
            same.aliases,
            texts(resource.get("aliases").unwrap_or(&Value::Null)),
            "{}",
            same.name
        );
    }
}

/// The order of design.md 8: policies that come before addresses, policies that go after them.
fn assert_policies_frame_addresses(replies: &[Reply]) {
    let rank = |reply: &Reply| match (
        &*reply.type_url == AUTHORIZATION_TYPE,
        reply.removed.is_empty(),
    ) {
        (true, true) => 0,
        (false, _) => 1,
        (true, false) => 2,
    };
    assert!(replies.is_sorted_by_key(rank), "{replies:?}");
    assert!(
        replies
            .iter()
            .all(|reply| rank(reply) != 2 || reply.resources.is_empty())
    );
}

#[test]
fn wildcard_streams_are_answered_as_recorded() {
    for file in [
        "01-wildcard",
        "03-reconnect-same",
        "04-reconnect-old-versions",
        "05-reconnect-unknown-names",
        "06-reconnect-only-unknown",
        "07-reconnect-subset",
        "08-reconnect-with-star",
        "11-order-address-authorization",
        "12-workload-type",
        "13-empty-authorization",
        "14-waypoint-life",
    ] {
        assert_eq!(replay_to_server(file), [""; 0], "{file}");
    }
}

/// testdata/DEVIATIONS.md, 2: what is asked by name is answered by name, not with everything.
#[test]
fn odd_requests_on_a_wildcard_stream_are_answered_with_what_they_name() {
    let all = "7 names; ours";
    let web_0 = r#"(["Kubernetes//Pod/alpha/web-0"], [])"#;
    let nothere = r#"([], ["Kubernetes//Pod/alpha/nothere"])"#;
    let web_1 = r#"(["Kubernetes//Pod/alpha/web-1"], [])"#;
    assert_eq!(
        replay_to_server("02-nack-and-odd-requests"),
        [
            format!(
                "a request with empty nonce that subscribes one name (stream is wildcard): {all}: {web_0}"
            ),
            format!(
                "a request with empty nonce that subscribes an unknown name: 8 names; ours: {nothere}"
            ),
            format!("an ACK that also subscribes a name: {all}: {web_1}"),
        ]
    );
}

/// testdata/DEVIATIONS.md, 3 to 5.
#[test]
fn on_demand_streams_are_answered_as_recorded_but_for_the_recorded_defects() {
    let web_1 = r#"(["Kubernetes//Pod/alpha/web-1"], [])"#;
    let far = r#"(["Kubernetes//Pod/beta/far-0", "beta/far.beta.svc.cluster.local"], [])"#;
    assert_eq!(
        replay_to_server("09-on-demand"),
        [
            format!("subscribe by uid: silent; ours: {web_1}"),
            format!("subscribe a known name again: silent; ours: {far}"),
            r#"ask again for 10.99.99.99, which was answered as unknown before: silent; ours: ([], ["/10.99.99.99"])"#
                .to_owned(),
            "unsubscribe alpha/web.alpha.svc.cluster.local: answered; ours is silent".to_owned(),
        ]
    );
    assert_eq!(replay_to_server("10-on-demand-reconnect"), [""; 0]);
}

// ---------------------------------------------------------------- client

/// Our client against recorded responses, with a mesh behind it.
struct OurClient {
    subscriptions: HashMap<String, Subscription>,
    mesh: Arc<Mesh>,
    writer: mesh::Writer,
}

impl OurClient {
    fn new() -> Self {
        let (mesh, writer) = Mesh::new();
        let subscription = |type_url: &'static str| {
            (
                type_url.to_owned(),
                Subscription::new(type_url, Wish::Everything),
            )
        };
        let subscriptions = [ADDRESS_TYPE, AUTHORIZATION_TYPE].map(subscription).into();
        Self {
            subscriptions,
            mesh,
            writer,
        }
    }

    /// Applies a response but for the names in `refuse`, and answers.
    fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        refuse: &[&str],
    ) -> DeltaDiscoveryRequest {
        let subscription = self.subscriptions.get_mut(&response.type_url).unwrap();
        let mut update = Update::default();
        let pending;
        if response.type_url == ADDRESS_TYPE {
            (update.addresses, pending) = subscription.receive(response);
            // What a refused resource looks like: its bytes are not what they claim to be.
            for (name, payload) in &mut update.addresses.set {
                if refuse.contains(&&**name) {
                    *payload = mesh::Payload::Bytes(vec![0xff].into());
                }
            }
        } else {
            (update.authorizations, pending) = subscription.receive(response);
        }
        let rejected = self.writer.apply(update);
        subscription.conclude(pending, rejected).0
    }

    fn held(&self, type_url: &str) -> BTreeMap<String, String> {
        self.subscriptions[type_url]
            .held()
            .map(|(name, version)| (name.to_string(), version))
            .collect()
    }
}

fn response(line: &Value) -> DeltaDiscoveryResponse {
    let type_url = type_url(line);
    let resource = |resource: &Value| Resource {
        version: resource["version"].as_str().unwrap().to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.clone(),
            value: encoded(&type_url, &resource["resource"]),
        }),
        name: resource["name"].as_str().unwrap().to_owned(),
        aliases: Vec::new(),
    };
    DeltaDiscoveryResponse {
        system_version_info: line["system_version_info"].as_str().unwrap().to_owned(),
        resources: line["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(resource)
            .collect(),
        nonce: line["nonce"].as_str().unwrap().to_owned(),
        removed_resources: texts(&line["removed_resources"]),
        type_url,
    }
}

/// Replays recorded responses on one stream after another; the recorded requests of a wildcard
/// client must be ours.
#[test]
fn our_client_says_what_the_recorded_client_says() {
    for file in [
        "01-wildcard",
        "02-nack-and-odd-requests",
        "11-order-address-authorization",
        "14-waypoint-life",
    ] {
        let mut client = OurClient::new();
        let mut answers = VecDeque::new();
        let mut served: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let lines = lines(file);
        let refused_next = |at: usize| match &lines[at..] {
            [_, ack, ..] if ack.get("error_detail").is_some() => {
                vec!["Kubernetes//Pod/alpha/web-0"]
            }
            _ => vec![],
        };
        for (at, line) in lines.iter().enumerate() {
            if is_response(line) {
                let refuse = refused_next(at);
                let served = served.entry(type_url(line)).or_default();
                for resource in line["resources"].as_array().unwrap() {
                    let name = resource["name"].as_str().unwrap().to_owned();
                    if !refuse.contains(&&*name) {
                        served.insert(name, resource["version"].as_str().unwrap().to_owned());
                    }
                }
                for name in texts(&line["removed_resources"]) {
                    served.remove(&name);
                }
                answers.push_back(client.receive(response(line), &refuse));
            } else if line.get("node").is_some() {
                let recorded = request(line);
                let subscription = client.subscriptions.get_mut(&recorded.type_url).unwrap();
                let ours = subscription.open(recorded.node.clone().unwrap(), usize::MAX);
                assert_eq!(ours, recorded, "{file}");
            } else if line.get("response_nonce").is_some() && line.get("subscribe").is_none() {
                let recorded = request(line);
                if recorded.response_nonce == "not-a-nonce" {
                    continue; // no real client says that
                }
                let ours = answers
                    .iter()
                    .find(|ours| ours.response_nonce == recorded.response_nonce)
                    .unwrap();
                assert_eq!(ours.type_url, recorded.type_url);
                assert_eq!(ours.error_detail.is_some(), recorded.error_detail.is_some());
                if let Some(error) = &ours.error_detail {
                    assert!(
                        error.message.starts_with("Kubernetes//Pod/alpha/web-0: "),
                        "{}",
                        error.message
                    );
                    assert_eq!(error.code, recorded.error_detail.unwrap().code);
                }
            }
        }
        for (type_url, served) in served {
            assert_eq!(
                client.held(&type_url),
                served,
                "{file}: what is held is what was served"
            );
        }
        let snapshot = client.mesh.load();
        let mut known: Vec<_> = snapshot
            .workloads()
            .map(|workload| workload.uid.to_string())
            .collect();
        known.extend(snapshot.services().map(|service| service.key().to_string()));
        known.sort();
        assert_eq!(
            known,
            client.held(ADDRESS_TYPE).into_keys().collect::<Vec<_>>(),
            "{file}: the mesh is what is held"
        );
    }
}

#[test]
fn our_client_reconnects_as_the_recorded_one() {
    let lines = lines("03-reconnect-same");
    let requests: Vec<_> = lines
        .iter()
        .filter(|line| line.get("node").is_some())
        .map(request)
        .collect();
    for recorded in requests {
        let mut subscription = match &*recorded.type_url {
            ADDRESS_TYPE => Subscription::new(ADDRESS_TYPE, Wish::Everything),
            _ => Subscription::new(AUTHORIZATION_TYPE, Wish::Everything),
        };
        let resource = |(name, version): (&String, &String)| Resource {
            version: version.clone(),
            resource: Some(prost_types::Any {
                type_url: recorded.type_url.clone(),
                value: Vec::new(),
            }),
            name: name.clone(),
            aliases: Vec::new(),
        };
        let response = DeltaDiscoveryResponse {
            resources: recorded
                .initial_resource_versions
                .iter()
                .map(resource)
                .collect(),
            ..Default::default()
        };
        let (_, pending) = subscription.receive::<wire::Address>(response);
        let _ = subscription.conclude(pending, Vec::new());
        let ours = subscription.open(recorded.node.clone().unwrap(), usize::MAX);
        assert_eq!(ours, recorded);
    }
}

/// What Istio's own ztunnel was seen to send, but for the order of the two types
/// (testdata/DEVIATIONS.md, 6).
#[test]
fn our_client_sends_what_a_real_ztunnel_sends() {
    let mut streams: Vec<Vec<DeltaDiscoveryRequest>> = Vec::new();
    for line in lines("15-real-ztunnel-requests") {
        match line["what"].as_str() {
            Some("stream") => streams.push(Vec::new()),
            Some("request") => streams.last_mut().unwrap().push(message(
                "envoy.service.discovery.v3.DeltaDiscoveryRequest",
                line["msg"].clone(),
            )),
            _ => {}
        }
    }
    assert_eq!(streams.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4]);
    for recorded in streams {
        let subscription = |type_url| Subscription::new(type_url, Wish::Everything);
        let mut ours = [subscription(ADDRESS_TYPE), subscription(AUTHORIZATION_TYPE)];
        for (ours, recorded) in ours.iter_mut().zip(&recorded) {
            let resource = |(name, version): (&String, &String)| Resource {
                version: version.clone(),
                name: name.clone(),
                aliases: Vec::new(),
                resource: Some(prost_types::Any {
                    type_url: ours.type_url().to_owned(),
                    value: Vec::new(),
                }),
            };
            let held = recorded
                .initial_resource_versions
                .iter()
                .map(resource)
                .collect();
            let (_, pending) = ours.receive::<wire::Address>(DeltaDiscoveryResponse {
                resources: held,
                ..Default::default()
            });
            let _ = ours.conclude(pending, Vec::new());
            let first = ours.open(recorded.node.clone().unwrap(), usize::MAX);
            assert_eq!(first, *recorded);
        }
        for (ours, recorded) in ours.iter_mut().zip(&recorded[2..]) {
            let nonce = recorded.response_nonce.clone();
            let (_, pending) = ours.receive::<wire::Address>(DeltaDiscoveryResponse {
                nonce,
                ..Default::default()
            });
            assert_eq!(ours.conclude(pending, Vec::new()).0, *recorded);
        }
    }
}
