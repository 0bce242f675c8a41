use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{Error, blob};
use crate::oci::{Algorithm, Digest};

/// Where a bundle is written: a tar, parts of one, or a folder. A file has its name only once it is whole, so that nobody
/// carries half of one away.
pub struct Output(Kind);

enum Kind {
    Tar(Box<tar::Builder<Parts>>),
    Folder(PathBuf),
}

/// One file after the other, each as large as a medium holds. A bundle in one piece is the first of them.
struct Parts {
    path: PathBuf,
    /// How large each may be.
    most: Option<u64>,
    files: Vec<PathBuf>,
    file: Option<BufWriter<File>>,
    left: u64,
}

/// What a file is called until it is whole.
const UNFINISHED: &str = "unfinished";
/// More parts than that have a medium too small.
const MOST_PARTS: usize = 999;

impl Output {
    /// A tar at `path`, in parts of `most` bytes, called `path.001` and so on, where that is given.
    ///
    /// # Errors
    /// The disk's.
    pub fn tar(path: &Path, most: Option<u64>) -> Result<Output, Error> {
        let mut parts = Parts { path: path.to_owned(), most, files: Vec::new(), file: None, left: 0 };
        parts.open_next().map_err(Error::io(path))?;
        Ok(Output(Kind::Tar(Box::new(tar::Builder::new(parts)))))
    }

    /// A folder, made where there is none. Blobs that are in it already are not written again.
    ///
    /// # Errors
    /// The disk's.
    pub fn folder(path: &Path) -> Result<Output, Error> {
        for algorithm in Algorithm::ALL {
            let folder = path.join("blobs").join(algorithm.as_str());
            fs::create_dir_all(&folder).map_err(Error::io(folder))?;
        }
        Ok(Output(Kind::Folder(path.to_owned())))
    }

    /// Whether a blob need not be written: it is there, and right.
    ///
    /// # Errors
    /// The disk's.
    pub fn has(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        let Kind::Folder(folder) = &self.0 else { return Ok(false) };
        let path = folder.join(blob(digest));
        let Ok(mut file) = File::open(&path) else { return Ok(false) };
        if file.metadata().map_err(Error::io(&path))?.len() != size {
            return Ok(false);
        }
        let mut hasher = digest.algorithm().hasher();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(Error::io(&path))? {
                0 => return Ok(hasher.finish() == *digest),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    /// Writes a blob of `size` bytes.
    ///
    /// # Errors
    /// The disk's, or what `content` says.
    pub fn blob(&mut self, digest: &Digest, size: u64, content: impl Read) -> Result<(), Error> {
        self.file(&blob(digest), size, content)
    }

    pub(super) fn text(&mut self, name: &str, text: &str) -> Result<(), Error> {
        self.file(name, text.len() as u64, text.as_bytes())
    }

    fn file(&mut self, name: &str, size: u64, content: impl Read) -> Result<(), Error> {
        match &mut self.0 {
            Kind::Tar(tar) => {
                let mut header = tar::Header::new_gnu();
                header.set_size(size);
                header.set_mode(0o644);
                // The same images make the same bundle: no time, no owner.
                header.set_mtime(0);
                let mut content = Exactly { content, left: size };
                let written = tar.append_data(&mut header, name, &mut content);
                written.map_err(Error::io(&tar.get_ref().path))
            }
            Kind::Folder(folder) => {
                let path = folder.join(name);
                write_file(&path, Exactly { content, left: size }).map_err(Error::io(&path))
            }
        }
    }

    /// All of it is written: it gets its name.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(self) -> Result<Vec<PathBuf>, Error> {
        match self.0 {
            Kind::Tar(tar) => {
                let path = tar.get_ref().path.clone();
                let parts = tar.into_inner().and_then(Parts::finish);
                parts.map_err(Error::io(path))
            }
            Kind::Folder(folder) => Ok(vec![folder]),
        }
    }
}

fn write_file(path: &Path, mut content: impl Read) -> io::Result<()> {
    let unfinished = path.with_extension(UNFINISHED);
    let mut file = File::create(&unfinished)?;
    io::copy(&mut content, &mut file)?;
    file.sync_all()?;
    fs::rename(unfinished, path)
}

impl Parts {
    fn open_next(&mut self) -> io::Result<()> {
        self.close()?;
        if self.files.len() == MOST_PARTS {
            return Err(io::Error::other(format!("more than {MOST_PARTS} parts; choose larger ones")));
        }
        let file = match self.most {
            Some(_) => suffixed(&self.path, &format!("{:03}", self.files.len() + 1)),
            None => self.path.clone(),
        };
        self.file = Some(BufWriter::with_capacity(1 << 20, File::create(suffixed(&file, UNFINISHED))?));
        self.left = self.most.unwrap_or(u64::MAX);
        self.files.push(file);
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some(file) => file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all(),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> io::Result<Vec<PathBuf>> {
        self.close()?;
        for file in &self.files {
            fs::rename(suffixed(file, UNFINISHED), file)?;
        }
        Ok(std::mem::take(&mut self.files))
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.open_next()?;
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("it is closed"))?;
        let written = file.write(&bytes[..most])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// What was not finished is of no use.
impl Drop for Parts {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(suffixed(file, UNFINISHED));
        }
    }
}

/// What is announced in front must come: a tar would be torn otherwise.
struct Exactly<R> {
    content: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        let is_right = read as u64 <= self.left && (read > 0 || self.left == 0 || buffer.is_empty());
        if !is_right {
            return Err(io::Error::other("the content is not as long as was said"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// `path` with a dot and this at its end.
fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
