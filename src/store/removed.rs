//! Sites that a new configuration no longer has: what was written about them, until nobody wants it back any more.

use rusqlite::{Row, params};

use super::{Journal, LastGood, StoreError};
use crate::{clock::Wall, config::gone, guard::Who, units::Name};

pub(super) const MIGRATION: &str = "
    CREATE TABLE removed_sites (
        site TEXT NOT NULL,
        file TEXT NOT NULL,
        content TEXT NOT NULL,
        last TEXT NOT NULL,
        without TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (site, file)
    ) WITHOUT ROWID;
";

/// Who removed it; not every revision that takes a site away makes a generation at the routers of the others.
pub(super) const AUTHOR: &str = "ALTER TABLE removed_sites ADD COLUMN author TEXT";

/// A file of a site that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedFile {
    /// The site.
    pub site: Name,
    /// The file that it stood in.
    pub file: String,
    /// What was written there about it.
    pub content: String,
    /// The last revision that had it.
    pub last: String,
    /// The first revision without it.
    pub without: String,
    /// When that was put in force.
    pub at: Wall,
    /// By whom: the author of the commit, or whoever made the generation.
    pub who: Option<String>,
}

impl Journal {
    /// Keeps the sites that are in `old` and no longer in `new`; what comes back in `new` is forgotten here.
    pub(super) fn write_removed(&self, old: &LastGood, new: &LastGood) -> Result<(), StoreError> {
        const DOING: &str = "write removed sites to";
        let (went, came) = (gone::gone(&old.files, &new.files), gone::gone(&new.files, &old.files));
        if went.is_empty() && came.is_empty() {
            return Ok(());
        }
        let work = self.db();
        for site in went.iter().chain(&came) {
            let forgotten = work.execute("DELETE FROM removed_sites WHERE site = ?", [site.site.as_str()]);
            forgotten.map_err(self.err(DOING))?;
        }
        for site in &went {
            for (file, content) in &site.files {
                let row = params![site.site.as_str(), file, content, old.revision, new.revision, new.at.as_micros()];
                let sql =
                    "INSERT INTO removed_sites (site, file, content, last, without, at) VALUES (?, ?, ?, ?, ?, ?)";
                work.execute(sql, row).map_err(self.err(DOING))?;
            }
        }
        Ok(())
    }

    /// Keeps who wrote the revision that took sites away.
    pub fn name_remover(&self, without: &str, author: &str) -> Result<(), StoreError> {
        let write = self.db().execute("UPDATE removed_sites SET author = ? WHERE without = ?", [author, without]);
        write.map(drop).map_err(self.err("write who removed a site to"))
    }

    /// What was written about sites that were removed since.
    pub fn removed(&self, since: Wall) -> Result<Vec<RemovedFile>, StoreError> {
        let sql = "SELECT site, file, content, last, without, at,
                (SELECT who FROM generations WHERE revision = without ORDER BY record LIMIT 1), author
            FROM removed_sites WHERE at >= ? ORDER BY site, file";
        let read = || -> rusqlite::Result<Vec<RemovedFile>> {
            let mut statement = self.db().prepare(sql)?;
            let rows = statement.query_map([since.as_micros()], row)?;
            rows.filter_map(Result::transpose).collect()
        };
        read().map_err(self.err("read removed sites of"))
    }

    /// Forgets sites that were removed before.
    pub fn forget_removed(&self, before: Wall) -> Result<(), StoreError> {
        let forget = self.db().execute("DELETE FROM removed_sites WHERE at < ?", [before.as_micros()]);
        forget.map(drop).map_err(self.err("forget removed sites of"))
    }
}

/// A row; one that this version cannot read is left out.
fn row(row: &Row<'_>) -> rusqlite::Result<Option<RemovedFile>> {
    let (site, who, author): (String, Option<String>, Option<String>) = (row.get(0)?, row.get(6)?, row.get(7)?);
    let Ok(site) = site.parse() else { return Ok(None) };
    Ok(Some(RemovedFile {
        site,
        file: row.get(1)?,
        content: row.get(2)?,
        last: row.get(3)?,
        without: row.get(4)?,
        at: Wall::from_micros(row.get(5)?),
        who: author.or_else(|| Some(serde_json::from_str::<Who>(&who?).ok()?.to_string())),
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn good(revision: &str, at: i64, sites: &[&str]) -> LastGood {
        let text = |site: &&str| format!("# {site}\nkind: Site\nmetadata: {{name: {site}}}\n").into_bytes();
        let files: BTreeMap<_, _> = sites.iter().map(|site| (format!("{site}.yaml"), text(site))).collect();
        LastGood { revision: revision.into(), at: Wall::from_micros(at), files }
    }

    #[test]
    fn removed_sites_stay_for_their_time_and_come_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let (both, one) = (good("r1", 5, &["north", "south"]), good("r2", 10, &["south"]));
        journal.write_removed(&both, &one).unwrap();
        let found = journal.removed(Wall::from_micros(0)).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].site.as_str(), found[0].file.as_str()), ("north", "north.yaml"));
        assert_eq!((found[0].last.as_str(), found[0].without.as_str()), ("r1", "r2"));
        assert!(found[0].content.starts_with("# north\n"));
        assert_eq!(found[0].who, None);
        journal.name_remover("r1", "Eve <eve@example.net>").unwrap();
        journal.name_remover("r2", "Ada <ada@example.net>").unwrap();
        assert_eq!(journal.removed(Wall::from_micros(0)).unwrap()[0].who.as_deref(), Some("Ada <ada@example.net>"));
        assert!(journal.removed(Wall::from_micros(11)).unwrap().is_empty());
        journal.write_removed(&one, &both).unwrap();
        assert!(journal.removed(Wall::from_micros(0)).unwrap().is_empty(), "it is there again");
        journal.write_removed(&both, &one).unwrap();
        journal.forget_removed(Wall::from_micros(11)).unwrap();
        assert!(journal.removed(Wall::from_micros(0)).unwrap().is_empty());
    }
}
