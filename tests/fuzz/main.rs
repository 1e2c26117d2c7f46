//! Replays the corpora of the fuzz targets. `tests/fuzz/run` searches for new inputs with libFuzzer.

mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use targets::TARGETS;

fn corpora() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus"))
}

#[test]
fn every_target_holds_for_its_corpus() {
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpora().join(name)).expect(name) {
            let path = entry.expect("an entry").path();
            println!("{}", path.display());
            target(&fs::read(&path).expect("an input"));
            inputs += 1;
        }
        assert!(inputs > 0, "{name}");
    }
}

#[test]
fn every_corpus_has_a_target() {
    let dirs = fs::read_dir(corpora()).expect("the corpora");
    let dirs: BTreeSet<String> =
        dirs.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    assert_eq!(dirs, TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect());
}
