//! What a tree may hold: plain files and directories, within limits that hold while it is walked.

use patronus::source::git::{Reason, Spec};

use super::{fetch, local};
use crate::support::forge::Team;

/// Object ids of things that no configuration has.
struct Odd {
    file: String,
    pointer: String,
}

fn odd(team: &Team) -> Odd {
    team.write("site.yaml", "x");
    team.push("plain");
    Odd {
        file: team.work("git hash-object -w site.yaml"),
        pointer: team.work(
            "printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:4d7a\\nsize 12345\\n' | git hash-object -w --stdin",
        ),
    }
}

/// A tree of these lines, as `git ls-tree` prints them.
fn tree(team: &Team, lines: &str) -> String {
    std::fs::write(team.path("lines"), lines).unwrap();
    team.work("git mktree --missing < ../lines")
}

#[tokio::test]
async fn only_plain_files_and_directories_are_taken() {
    let team = Team::new();
    let state = tempfile::tempdir().unwrap();
    let Odd { file, pointer } = odd(&team);
    let site = format!("100644 blob {file}\tsite.yaml\n");
    for (lines, path, said) in [
        (format!("120000 blob {file}\tlink.yaml\n"), "", "link.yaml is a symbolic link"),
        (format!("120000 blob {file}\tREADME\n"), "", "README is a symbolic link"),
        (format!("160000 commit {}\tmodules\n", "1".repeat(40)), "", "modules is a submodule"),
        (format!("100755 blob {file}\tcheck.sh\n"), "", "check.sh is executable"),
        (format!("100644 blob {pointer}\tbig.yaml\n"), "", "big.yaml is a pointer of Git LFS"),
        (format!("040000 tree {}\tsub\n", tree(&team, &format!("120000 blob {file}\ta\n"))), "", "sub/a is a symbolic"),
        (format!("120000 blob {file}\tsites\n"), "sites", "sites is a symbolic link"),
    ] {
        team.push_tree(&tree(&team, &format!("{lines}{site}")));
        let error = fetch(Spec { path: path.into(), ..local(&team) }, state.path(), None).await.unwrap_err();
        assert_eq!(error.reason, Reason::Refused, "{said}: {error}");
        assert!(error.message.contains(said) && error.remedy.contains("`path`"), "{error}");
    }
    // Beside the directory that is followed, and under a hidden name, everything is allowed.
    let sites = tree(&team, &site);
    let lines = format!("100755 blob {file}\tcheck.sh\n120000 blob {file}\t.link\n040000 tree {sites}\tsites\n");
    team.push_tree(&tree(&team, &lines));
    let snapshot = fetch(Spec { path: "sites".into(), ..local(&team) }, state.path(), None).await.unwrap();
    assert_eq!(snapshot.files.keys().collect::<Vec<_>>(), ["site.yaml"]);
    team.push_tree(&tree(&team, &format!("120000 blob {file}\t.link\n100644 blob {file}\tREADME\n{site}")));
    let snapshot = fetch(local(&team), state.path(), None).await.unwrap();
    assert_eq!(snapshot.files.keys().collect::<Vec<_>>(), ["site.yaml"]);
}

#[tokio::test]
async fn a_tree_without_configuration_is_an_error() {
    let team = Team::new();
    let state = tempfile::tempdir().unwrap();
    let Odd { file, .. } = odd(&team);
    for (lines, path, said) in [
        (String::new(), "", "the tree holds no *.yaml"),
        (format!("100644 blob {file}\tREADME.md\n"), "", "the tree holds no *.yaml"),
        (format!("100644 blob {file}\tsite.yaml\n"), "sites", "has no directory `sites`"),
    ] {
        team.push_tree(&tree(&team, &lines));
        let error = fetch(Spec { path: path.into(), ..local(&team) }, state.path(), None).await.unwrap_err();
        assert_eq!(error.reason, Reason::Empty, "{error}");
        assert!(error.message.contains(said), "{error}");
    }
}

/// Ten levels of ten equal directories are ten objects and 10^10 paths.
#[tokio::test]
async fn limits_hold_while_a_tree_is_walked() {
    let team = Team::new();
    let state = tempfile::tempdir().unwrap();
    let Odd { file, .. } = odd(&team);
    let bomb = |levels: usize, width: usize, leaf: &str| {
        let mut id = tree(&team, &format!("100644 blob {file}\t{leaf}\n"));
        for _ in 0..levels {
            let lines: Vec<String> = (0..width).map(|n| format!("040000 tree {id}\td{n}\n")).collect();
            id = tree(&team, &lines.concat());
        }
        id
    };
    let large = team.work("head -c 1048577 /dev/zero | git hash-object -w --stdin");
    let many = team.work("head -c 1048576 /dev/zero | tr '\\0' '#' | git hash-object -w --stdin");
    let seventeen: Vec<String> = (10..27).map(|n| format!("100644 blob {many}\t{n}.yaml\n")).collect();
    for (id, said) in [
        (bomb(10, 10, "a.md"), "at most 50000 entries"),
        (bomb(5, 10, "a.yaml"), "at most 10000 files"),
        (bomb(40, 1, "a.yaml"), "directories deep"),
        (
            tree(&team, &format!("100644 blob {large}\tlarge.yaml\n")),
            "large.yaml is over the limit: a file has at most",
        ),
        (tree(&team, &seventeen.concat()), "26.yaml is over the limit: a tree has at most"),
    ] {
        team.push_tree(&id);
        let error = fetch(local(&team), state.path(), None).await.unwrap_err();
        assert_eq!(error.reason, Reason::Limit, "{error}");
        assert!(error.message.contains(said), "{said}: {error}");
    }
    assert!(team.sh("du -sk network.git | cut -f1").parse::<u64>().unwrap() < 2_000, "they were small");
}
