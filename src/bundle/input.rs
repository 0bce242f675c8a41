use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::{Error, LAYOUT, docker_save};

/// The files of a bundle, by their names.
pub(super) struct Input {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    /// The parts of it, and where its files lie in them.
    Tar(Joined, HashMap<String, Place>),
    Folder,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

/// Files read as if they were one.
#[derive(Debug)]
struct Joined {
    /// Each with where it begins.
    files: Vec<(u64, PathBuf)>,
    length: u64,
    at: u64,
    open: Option<(usize, File)>,
}

/// A tar whose headers are read: what says of a file where it is and what it is called.
struct Headers {
    tar: Joined,
    /// How much may still be read for the next one.
    left: Rc<Cell<usize>>,
}

/// Files of a tar that are looked at; no bundle has more.
const MOST_FILES: usize = 2_000_000;
/// What they and links are called, in bytes: no bundle has as much, and all of it is remembered (I7).
const LONGEST_NAMES: usize = 256 << 20;
/// More than the headers of any file. A name is a file of its own there, of any length, and is read whole (I7).
const LARGEST_HEADER: usize = 1 << 20;

impl Input {
    /// A folder, a tar, or the first part of one.
    pub(super) fn open(path: &Path) -> Result<Input, Error> {
        let data = fs::metadata(path).map_err(Error::io(path))?;
        let kind = if data.is_dir() {
            Kind::Folder
        } else {
            let joined = Joined::open(path)?;
            let (joined, places) = look_through(path, joined)?;
            Kind::Tar(joined, places)
        };
        Ok(Input { path: path.to_owned(), kind })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The size of a file, if there is one of that name.
    pub(super) fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        match &self.kind {
            Kind::Tar(_, places) => Ok(places.get(name).map(|place| place.size)),
            Kind::Folder => {
                let name = plain(name)
                    .ok_or_else(|| Error::broken(&self.path, format!("{name} leads out of it")))?;
                let path = self.path.join(name);
                match fs::symlink_metadata(&path) {
                    Ok(data) if data.is_file() => Ok(Some(data.len())),
                    Ok(_) => Err(Error::broken(path, "is no plain file; links are not followed")),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::io(path)(error)),
                }
            }
        }
    }

    /// The content of a file.
    pub(super) fn read(&self, name: &str) -> Result<impl Read + Send + 'static + use<>, Error> {
        let missing = || Error::broken(&self.path, format!("{name} is missing"));
        let size = self.size(name)?.ok_or_else(missing)?;
        let content: Box<dyn Read + Send> = match &self.kind {
            Kind::Tar(joined, places) => {
                let mut joined = joined.again();
                joined.at = places.get(name).ok_or_else(missing)?.offset;
                Box::new(joined)
            }
            Kind::Folder => {
                let path = self.path.join(name);
                Box::new(File::open(&path).map_err(Error::io(path))?)
            }
        };
        Ok(content.take(size))
    }

    /// The whole of a small one; `None` where there is none.
    pub(super) fn whole(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(size) = self.size(name)? else { return Ok(None) };
        if size > most {
            return Err(Error::broken(&self.path, format!("{name} is larger than {most} bytes")));
        }
        let mut bytes = Vec::new();
        self.read(name)?.read_to_end(&mut bytes).map_err(Error::io(&self.path))?;
        Ok(Some(bytes))
    }
}

/// Where each file lies. Nothing is read but the headers, and nothing ever leaves the tar by its name.
fn look_through(path: &Path, joined: Joined) -> Result<(Joined, HashMap<String, Place>), Error> {
    let length = joined.length;
    let left = Rc::new(Cell::new(LARGEST_HEADER));
    let mut tar = tar::Archive::new(Headers { tar: joined, left: Rc::clone(&left) });
    let (mut places, mut links, mut count, mut named) = (HashMap::new(), Vec::new(), 0, 0);
    let broken = |reason: String| Error::broken(path, reason);
    let no_tar = |error: io::Error| {
        broken(format!("cannot be read as a tar: {error}; unpack it first if it is compressed"))
    };
    for entry in tar.entries_with_seek().map_err(no_tar)? {
        let entry = entry.map_err(no_tar)?;
        left.set(LARGEST_HEADER);
        let kind = entry.header().entry_type();
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = plain(&shown).ok_or_else(|| {
            broken(format!(
                "holds a file called {shown:?}, which leads out of it; it was not made by an honest program"
            ))
        })?;
        if kind.is_dir() {
            continue;
        }
        let target = entry.link_name_bytes().unwrap_or_default();
        count += 1;
        named += name.len() + target.len();
        if count > MOST_FILES || named > LONGEST_NAMES {
            return Err(broken(format!("holds more than {MOST_FILES} files, or names that are too long")));
        }
        if kind.is_symlink() || kind.is_hard_link() {
            links.push((name, String::from_utf8_lossy(&target).into_owned(), kind.is_hard_link()));
            continue;
        }
        if !kind.is_file() {
            return Err(broken(format!("{name} is a device; a bundle holds plain files only")));
        }
        let place = Place { offset: entry.raw_file_position(), size: entry.size() };
        if place.offset.checked_add(place.size).is_none_or(|end| end > length) {
            return Err(broken(format!(
                "is cut off in the midst of {name}; copy it again, with all of its parts"
            )));
        }
        if places.insert(name.clone(), place).is_some() {
            return Err(broken(format!("holds {name} twice")));
        }
    }
    if let Some((name, ..)) = links.first().filter(|_| !is_docker_save(&places)) {
        return Err(broken(format!("{name} is a link; a bundle holds plain files only")));
    }
    for (name, target, is_hard) in links {
        let inside = if is_hard { plain(&target) } else { beside(&name, &target) };
        let inside = inside.ok_or_else(|| broken(format!("{name} is a link that leads out of it")))?;
        // What leads nowhere, or to another link, is missed where it is needed.
        if let Some(place) = places.get(&inside).copied()
            && places.insert(name.clone(), place).is_some()
        {
            return Err(broken(format!("holds {name} twice")));
        }
    }
    if places.is_empty() {
        return Err(broken("holds nothing; it is cut off, or no tar".to_owned()));
    }
    Ok((tar.into_inner().tar, places))
}

/// Such an archive has links for layers that are in there already.
fn is_docker_save(places: &HashMap<String, Place>) -> bool {
    places.contains_key(docker_save::MANIFEST) && !places.contains_key(LAYOUT)
}

/// What a link called `name` leads to within the tar; `None` where that is outside.
fn beside(name: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for component in Path::new(target).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// The name without a leading `./`; `None` where it leads elsewhere.
fn plain(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

impl Joined {
    /// `path`, and where it ends in `.001` all parts behind it.
    fn open(path: &Path) -> Result<Joined, Error> {
        let mut paths = vec![path.to_owned()];
        if path.extension().is_some_and(|end| end == "001") {
            let parts = (2..).map(|number| path.with_extension(format!("{number:03}")));
            paths.extend(parts.take_while(|part| part.exists()));
        }
        let (mut files, mut length) = (Vec::new(), 0);
        for path in paths {
            let size = fs::metadata(&path).map_err(Error::io(&path))?.len();
            files.push((length, path));
            length += size;
        }
        Ok(Joined { files, length, at: 0, open: None })
    }

    /// From its beginning.
    fn again(&self) -> Joined {
        Joined { files: self.files.clone(), length: self.length, at: 0, open: None }
    }
}

impl Read for Joined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.length || buffer.is_empty() {
            return Ok(0);
        }
        let which = self.files.partition_point(|(begin, _)| *begin <= self.at) - 1;
        let (begin, path) = &self.files[which];
        let mut file = match self.open.take() {
            Some((open, file)) if open == which => file,
            _ => File::open(path)?,
        };
        file.seek(SeekFrom::Start(self.at - begin))?;
        let read = file.read(buffer)?;
        if read == 0 {
            return Err(io::Error::other(format!("{} became shorter while it was read", path.display())));
        }
        self.at += read as u64;
        self.open = Some((which, file));
        Ok(read)
    }
}

impl Seek for Joined {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = to.ok_or_else(|| io::Error::other("before the beginning"))?;
        Ok(self.at)
    }
}

impl Read for Headers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.left.get());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!(
                "a name or another header has more than {LARGEST_HEADER} bytes"
            )));
        }
        let read = self.tar.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - read);
        Ok(read)
    }
}

impl Seek for Headers {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.tar.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn names_that_lead_elsewhere() {
        for wrong in ["/etc/passwd", "../x", "blobs/../../x", "a/.."] {
            assert_eq!(plain(wrong), None, "{wrong}");
        }
        assert_eq!(plain("./blobs/sha256/ab").as_deref(), Some("blobs/sha256/ab"));
        assert_eq!(plain("index.json").as_deref(), Some("index.json"));
    }

    #[test]
    fn where_links_lead() {
        for (name, target, to) in [
            ("ab/layer.tar", "../cd/layer.tar", Some("cd/layer.tar")),
            ("ab/layer.tar", "../cd.tar", Some("cd.tar")),
            ("layer.tar", "./cd.tar", Some("cd.tar")),
            ("ab/layer.tar", "../../cd.tar", None),
            ("layer.tar", "../etc/passwd", None),
            ("ab/layer.tar", "/etc/passwd", None),
        ] {
            assert_eq!(beside(name, target).as_deref(), to, "{name} {target}");
        }
    }

    #[test]
    fn no_more_names_are_remembered_than_a_bundle_has() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.as_file());
        let longest = LARGEST_HEADER - 10_000;
        for number in 0..=LONGEST_NAMES / longest {
            let name = format!("{number}{}", "x".repeat(longest));
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            tar.append_data(&mut header, name, io::empty()).unwrap();
        }
        tar.finish().unwrap();
        let error = Input::open(file.path()).err().unwrap().to_string();
        assert!(error.contains("names that are too long"), "{error}");
    }

    #[test]
    fn no_name_is_read_into_memory_however_long() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 33);
        header.set_cksum();
        fs::write(file.path(), header.as_bytes()).unwrap();
        // Of nothing: a sparse file.
        file.as_file().set_len(1 << 34).unwrap();
        let error = Input::open(file.path()).err().unwrap().to_string();
        assert!(error.contains("a name or another header has more than 1048576 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_take_it_down(bytes in any::<Vec<u8>>()) {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), bytes).unwrap();
            let _ = Input::open(file.path());
        }
    }
}
