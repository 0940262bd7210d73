"""What a loss of power leaves of a directory: crash images from the journal of disk_recorder.c.

    before = Snapshot.of(directory)              # before the program starts: all of this is on the disk
    ... the program runs under the recorder and is killed ...
    image = CrashImage(before, journal, random)  # one of the images that the power's end at that moment allows
    image.write(directory)

The rules. On the disk are: what was there before; every write to a file opened with O_DSYNC that returned; every write and size that had
returned before a sync of the same file began that returned; every name whose directory was synced since. Of everything else each sector
may be there or not: writes are torn at 512 B or 4 KiB at random, sizes and later writes may be there without earlier ones. Names that were
not synced are there up to a random point of their order (file systems keep a journal of these), whatever their file's content is. A file
whose name is not there is gone, contents and all. A directory that was renamed takes along whatever names are in it in the end.

The image is cut where the program was killed; so everything that any client had heard until then is to be found on it."""
import collections
import os
import pathlib
import struct

_ENTRY = struct.Struct("<IIQQQqQII")
_MAGIC = 0x4C52
OPEN, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, END = range(1, 8)
CREATED, TRUNCATED, DSYNC, DIRECTORY = 1, 2, 4, 8

Entry = collections.namedtuple("Entry", "kind id time_ns inode offset names flags data")


def read_journal(path):
    """All complete entries."""
    raw = pathlib.Path(path).read_bytes() if os.path.exists(path) else b""
    at, found = 0, []
    while at + _ENTRY.size <= len(raw):
        magic, kind, number, time_ns, inode, offset, size, name_size, flags = _ENTRY.unpack_from(raw, at)
        if magic != _MAGIC:
            raise ValueError(f"{path}: no entry at {at}")
        at += _ENTRY.size
        if at + name_size + size > len(raw):
            break
        names = raw[at:at + name_size].decode().split("\0")
        found.append(Entry(kind, number, time_ns, inode, offset, names, flags, raw[at + name_size:at + name_size + size]))
        at += name_size + size
    return found


class Snapshot:
    """Files of a directory: {name relative to it: (inode, contents)}, and its directories."""

    def __init__(self):
        self.files, self.directories = {}, []

    @classmethod
    def of(cls, directory):
        snapshot, root = cls(), pathlib.Path(directory)
        for path in sorted(root.rglob("*")) if root.is_dir() else []:
            name = str(path.relative_to(root))
            if path.is_dir():
                snapshot.directories.append(name)
            elif path.is_file():
                snapshot.files[name] = (path.stat().st_ino, path.read_bytes())
        return snapshot


class _Change:
    """Of a file's contents, of a name, or of a directory's name. `is_done`: the call returned; `is_durable`: see the module."""

    __slots__ = ("offset", "data", "size", "names", "moves", "is_dsync", "is_done", "is_durable")

    def __init__(self, offset=0, data=None, size=None, names=(), is_dsync=False):
        self.offset, self.data, self.size, self.names, self.is_dsync = offset, data, size, names, is_dsync
        self.moves = ()  # (old, new)
        self.is_done = self.is_durable = False


class _File:
    def __init__(self, content=b""):
        self.content, self.changes = content, []


def _moved(name, old, new):
    """The name after its directory's, if that is above it."""
    return new + name[len(old):] if name == old or name.startswith(old + "/") else name


class CrashImage:
    def __init__(self, before, journal, random):
        """before: Snapshot; journal: path, or a list of entries (a part of a journal: the power goes there); random: random.Random."""
        self.directories = before.directories
        self.files_by_inode, self.names = {}, {}
        for name, (inode, content) in before.files.items():
            self.names[name] = self.files_by_inode[inode] = _File(content)
        self.live = dict(self.names)  # as the program sees them
        self.name_changes = collections.defaultdict(list)  # directory -> changes, each of names [(name, file or None)]
        self.moves = []  # changes of directories' names, in their order
        self.lost = self.kept = 0
        self._follow(journal if isinstance(journal, list) else read_journal(journal))
        # Much of what is not synced reaches a disk soon, or nothing does: both ends are as likely as what lies between.
        self.chance, self.sector = random.choice((0.0, 0.0, 0.1, 0.5, 0.9, 1.0)), random.choice((512, 4096))
        self.files = {}
        self._make(random)

    # -- what is durable --

    def _follow(self, entries):
        under_way = {}  # id -> what END does
        for entry in entries:
            if entry.kind == END:
                finish = under_way.pop(entry.id, None)
                if finish:
                    finish(entry.offset)
            else:
                under_way[entry.id] = {OPEN: self._open, WRITE: self._write, TRUNCATE: self._truncate, SYNC: self._sync, RENAME: self._rename,
                                       UNLINK: self._unlink}[entry.kind](entry)

    @staticmethod
    def _finish_change(change):
        def finish(result):
            change.is_done = result >= 0
            if not change.is_done:
                change.names = change.moves = ()  # a write that failed may still be there in part, a name not
            change.is_durable = change.is_durable or (change.is_dsync and result == len(change.data or b""))

        return finish

    def _change_names(self, pairs):
        """pairs: (name, file or None); of one directory, or of two that are then treated as the second's."""
        change = _Change(names=pairs)
        self.name_changes[os.path.dirname(pairs[-1][0])].append(change)
        for name, file in pairs:
            if file is None:
                self.live.pop(name, None)
            else:
                self.live[name] = file
        return self._finish_change(change)

    def _open(self, entry):
        name, file = entry.names[0], self.files_by_inode.get(entry.inode)
        if entry.flags & CREATED:
            file = self.files_by_inode[entry.inode] = _File()
            return self._change_names([(name, file)])
        if file is None:  # made by somebody who was not recorded
            file = self.files_by_inode[entry.inode] = self.names[name] = self.live[name] = _File()
        change = _Change(size=0)
        file.changes.append(change)
        return self._finish_change(change)

    def _file(self, entry):
        return self.files_by_inode.setdefault(entry.inode, _File())

    def _write(self, entry):
        change = _Change(offset=entry.offset, data=entry.data, is_dsync=bool(entry.flags & DSYNC))
        self._file(entry).changes.append(change)
        return self._finish_change(change)

    def _truncate(self, entry):
        change = _Change(size=entry.offset)
        self._file(entry).changes.append(change)
        return self._finish_change(change)

    def _sync(self, entry):
        changes = self.name_changes[entry.names[0]] if entry.flags & DIRECTORY else self._file(entry).changes
        covered = [change for change in changes if change.is_done and not change.is_durable]

        def finish(result):
            if result == 0:
                for change in covered:
                    change.is_durable = True

        return finish

    def _rename(self, entry):
        old, new = entry.names
        file = self.live.get(old)
        if file:
            return self._change_names([(old, None), (new, file)])
        change = _Change()
        change.moves = (old, new)
        self.moves.append(change)
        self.name_changes[os.path.dirname(new)].append(change)
        self.live = {_moved(name, old, new): below for name, below in self.live.items()}
        return self._finish_change(change)

    def _unlink(self, entry):
        return self._change_names([(entry.names[0], None)]) if entry.names[0] in self.live else (lambda result: None)

    # -- one of the images --

    def _make(self, random):
        moves = []
        for changes in self.name_changes.values():
            first = 1 + max((index for index, change in enumerate(changes) if change.is_durable), default=-1)
            for change in changes[:random.randint(first, len(changes))]:
                for name, file in change.names:
                    if file is None:
                        self.names.pop(name, None)
                    else:
                        self.names[name] = file
                if change.moves:
                    moves.append(change)
        for change in sorted(moves, key=self.moves.index):  # whichever directories they are of: what takes a name comes behind what gave it up
            old, new = change.moves
            self.names = {_moved(name, old, new): file for name, file in self.names.items()}
            self.directories = [_moved(name, old, new) for name in self.directories]
        self.files = {name: self._content(file, random) for name, file in self.names.items()}

    def _content(self, file, random):
        content = bytearray(file.content)
        for change in file.changes:
            if change.data is None:
                if change.is_durable or random.random() < self.chance:
                    del content[change.size:]
                    content += bytes(change.size - len(content))
            elif change.is_durable:
                self._put(content, change.offset, change.data)
            else:
                for start, part in self._sectors(change):
                    if random.random() < self.chance:
                        self._put(content, start, part)
                        self.kept += 1
                    else:
                        self.lost += 1
        return bytes(content)

    def _sectors(self, change):
        at, size = 0, len(change.data)
        while at < size:
            end = min(size, at + self.sector - (change.offset + at) % self.sector)
            yield change.offset + at, change.data[at:end]
            at = end

    @staticmethod
    def _put(content, offset, data):
        if offset > len(content):
            content += bytes(offset - len(content))
        content[offset:offset + len(data)] = data

    def write(self, directory):
        """Into a directory that is empty or not there yet."""
        root = pathlib.Path(directory)
        for name in self.directories:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def summary(self):
        return f"unsynced sectors: {self.kept} kept, {self.lost} lost (chance {self.chance}, {self.sector} B)"
