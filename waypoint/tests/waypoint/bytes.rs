//! Connections that are not HTTP: declared as such, or with a server that speaks first.

use std::io::{Read, Write};
use std::net::Shutdown;

use anyhow::{Result, ensure};

use super::shop::{Shop, in_shop};

#[test]
fn bytes_of_a_tcp_service_are_carried_with_half_close() {
    in_shop(|shop| {
        for app in &shop.apps {
            let listener = app.listen(7070)?;
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    // The server speaks first, and last.
                    let _ = stream.write_all(b"hello ");
                    let mut all = Vec::new();
                    let _ = stream.read_to_end(&mut all);
                    let _ = stream.write_all(&all);
                }
            });
        }
        let mut stream = shop.client.connect(shop.at(70))?;
        let mut hello = [0; 6];
        stream.read_exact(&mut hello)?;
        ensure!(&hello == b"hello ");
        stream.write_all(&[9; 100_000])?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        ensure!(back == [9; 100_000], "{} bytes", back.len());

        // Nothing is said of this port, and the word may become a request's: it is passed on when nothing follows.
        let guess = shop
            .lab
            .service_for("shop/guess", ("app", "web"), &[("raw", 1, 7070)])?;
        let ask = |shop: &Shop<'_>| -> Result<String> {
            let mut stream = shop.client.connect(guess.at(1))?;
            stream.write_all(b"PING")?;
            let mut hello = [0; 6];
            stream.read_exact(&mut hello)?;
            stream.shutdown(Shutdown::Write)?;
            let mut back = String::new();
            stream.read_to_string(&mut back)?;
            Ok(back)
        };
        shop.until("a word to come back", |shop| {
            ask(shop).is_ok_and(|back| back == "PING")
        })?;
        Ok(())
    });
}
