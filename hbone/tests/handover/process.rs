//! The other owner is another process, which has nothing but bytes and descriptors.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hbone::{
    Counters, Engine, Limits,
    handover::{Taken, Thawed},
};
use tokio::{io::AsyncWriteExt, net::tcp::OwnedWriteHalf, sync::watch, task::JoinSet};

use crate::{
    common,
    world::{LONG, World, hear, pattern, sent},
};

/// Names the folder in which both processes leave each other word.
const FOLDER: &str = "HANDOVER_FOLDER";

/// Bytes that each app says.
const SAID: usize = 10_000_000;

fn word(folder: &Path, said: &str) -> PathBuf {
    folder.join(said)
}

/// Says all of it, and ends as soon as it may: there has to be something left that the other can go on with.
async fn say(mut app: OwnedWriteHalf, mut may_end: watch::Receiver<bool>) -> OwnedWriteHalf {
    const PIECE: usize = 50_000;
    for said in (0..SAID).step_by(PIECE) {
        app.write_all(&pattern(said, PIECE)).await.unwrap();
    }
    may_end.wait_for(|may| *may).await.unwrap();
    app.shutdown().await.unwrap();
    app
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_goes_on_in_the_middle_of_bulk() {
    for at_near in [false, true] {
        let mut world = World::new(Engine::Own, Engine::Own).await;
        let (near, far) = world.tunnel().await;
        let (is_frozen, may_end) = watch::channel(false);
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let talking = [
            tokio::spawn(hear(near_read, false)),
            tokio::spawn(hear(far_read, false)),
        ];
        let saying = [
            tokio::spawn(say(near_write, may_end.clone())),
            tokio::spawn(say(far_write, may_end)),
        ];

        let side = if at_near { &world.near } else { &world.far };
        let frozen = side.freezer().freeze(LONG).await.unwrap();
        is_frozen.send_replace(true);
        let (bytes, mut descriptors) = sent(&frozen);
        let folder =
            std::env::temp_dir().join(format!("handover-{}-{at_near}", std::process::id()));
        let _ = fs::remove_dir_all(&folder); // of a run that was killed
        fs::create_dir(&folder).unwrap();
        fs::write(word(&folder, "state"), bytes).unwrap();
        let app = descriptors.pop().unwrap();
        let connection = descriptors.pop().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "process::the_other_process"])
            .env(FOLDER, &folder)
            .stdin(Stdio::from(connection))
            .stdout(Stdio::null())
            .stderr(Stdio::from(app))
            .spawn()
            .unwrap();
        common::eventually("the other process has read it", || {
            !word(&folder, "state").exists()
        })
        .await;
        frozen.forget();
        fs::write(word(&folder, "commit"), []).unwrap();

        for heard in talking {
            let heard = tokio::time::timeout(LONG, heard).await;
            assert_eq!(heard.unwrap().unwrap(), (SAID, true));
        }
        for said in saying {
            said.await.unwrap();
        }
        let other = if at_near {
            &mut world.far_finished
        } else {
            &mut world.near_finished
        };
        assert!(other.recv().await.unwrap().ended.clean());
        if !at_near {
            // Nobody opens tunnels on it any more: so it ends, also for the other process.
            let destination = &world.client.destination;
            let pool = &world.client.pool;
            pool.close_source(&destination.source, destination.source_ip);
        }
        common::eventually("the other process ends", || {
            child.try_wait().unwrap().is_some()
        })
        .await;
        assert!(child.wait().unwrap().success());
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[tokio::test]
#[ignore = "run by `another_process_goes_on_in_the_middle_of_bulk`"]
async fn the_other_process() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let descriptors = vec![
        std::io::stdin().as_fd().try_clone_to_owned().unwrap(),
        std::io::stderr().as_fd().try_clone_to_owned().unwrap(),
    ];
    let bytes = fs::read(word(&folder, "state")).unwrap();
    let taken = Taken::read(bytes, descriptors).unwrap();
    fs::remove_file(word(&folder, "state")).unwrap();
    common::eventually("it is ours", || word(&folder, "commit").exists()).await;

    let mut copies = JoinSet::new();
    let tunnels = match taken.thaw(&Limits::default()).unwrap() {
        Thawed::Dialled(connection, tunnels) => {
            copies.spawn(async {
                connection.run().await;
                true
            });
            tunnels
        }
        Thawed::Accepted(mut connection, tunnels) => {
            copies.spawn(async move { connection.next().await.is_none() });
            tunnels
        }
        Thawed::Pair(_) => panic!("a connection was frozen"),
    };
    for tunnel in tunnels {
        let (sent, received) = tunnel.moved();
        let counters = Counters::of(sent, received);
        copies.spawn(async move { tunnel.both_ways(&counters).await.clean() });
    }
    assert!(copies.join_all().await.into_iter().all(|well| well));
}
