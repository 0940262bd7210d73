#include "tests/lib/sim_fs.h"

#include "common/bytes.h"
#include "common/check.h"

#include <stdlib.h>
#include <string.h>

#define SIM_FS_OP_KINDS 7

/* A file's contents. `seen` is what programs read; `durable` what survives; a sector is dirty when a crash may leave either of the two.
 * After a failed sync the sectors are clean although they differ: they are lost at the next crash. */
struct sim_inode {
    bool is_used;           /* of sim_collect */
    struct sim_inode *next; /* all inodes */
    uint8_t *seen;
    uint8_t *durable;
    uint64_t seen_size;
    uint64_t durable_size;
    uint64_t capacity; /* of both arrays, a multiple of the sector */
    uint8_t *dirty;    /* by sector: 0 clean, 1 dirty, 2 held */
    bool size_dirty;
    struct sim_file *lock_owner;
};

struct sim_name {
    struct sim_name *next;
    struct sim_inode *inode;
    char path[];
};

/* What a directory sync makes durable, in order. */
struct sim_name_op {
    struct sim_name_op *next;
    struct sim_inode *inode; /* NULL: remove */
    char *removed;           /* name that goes, or NULL */
    char *added;             /* name that comes, or NULL */
};

struct sim_file {
    struct file file;
    struct sim_inode *inode;
    struct sim_file *next;
    unsigned flags;
    int process;
    bool dead;
};

struct sim_fs {
    struct fs fs;
    uint64_t random;
    uint32_t alignment;
    struct sim_inode *inodes;
    struct sim_name *seen_names;
    struct sim_name *durable_names;
    struct sim_name *dirs;
    struct sim_name_op *pending;
    struct sim_file *files;
    int process;
    bool hold;
    bool has_held;
    bool refuse_direct;
    uint64_t free_bytes;
    uint64_t op_counts[SIM_FS_OP_KINDS];
    unsigned fail_ops;
    uint64_t fail_in;
    enum err fail_err;
    bool fail_all_after;
};

/* splitmix64: small, and good enough to choose sectors. */
uint64_t sim_fs_draw(struct sim_fs *sim)
{
    uint64_t z = (sim->random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void *sim_alloc(size_t size)
{
    void *memory = calloc(1, size ? size : 1);
    CHECK(memory);
    return memory;
}

/* Names: one flat list of whole paths, written without doubled or trailing slashes. */
static void sim_path(char *out, const char *path)
{
    size_t size = 0;
    for (const char *at = path; *at; at++) {
        if (*at == '/' && (at[1] == '/' || at[1] == 0) && size > 0)
            continue;
        CHECK(size < FILE_PATH_MAX - 1);
        out[size++] = *at;
    }
    out[size] = 0;
}

static bool sim_in_dir(const char *path, const char *dir)
{
    size_t size = strlen(dir);
    if (size == 0 || strcmp(dir, ".") == 0)
        return !strchr(path, '/');
    if (strncmp(path, dir, size) != 0)
        return false;
    const char *rest = path + size;
    if (strcmp(dir, "/") != 0) {
        if (*rest != '/')
            return false;
        rest++;
    }
    return *rest && !strchr(rest, '/');
}

static struct sim_name **sim_find(struct sim_name **list, const char *path)
{
    while (*list && strcmp((*list)->path, path) != 0)
        list = &(*list)->next;
    return list;
}

static void sim_set_name(struct sim_name **list, const char *path, struct sim_inode *inode)
{
    struct sim_name **at = sim_find(list, path);
    if (*at) {
        (*at)->inode = inode;
        return;
    }
    struct sim_name *name = (struct sim_name *)sim_alloc(sizeof *name + strlen(path) + 1);
    strcpy(name->path, path);
    name->inode = inode;
    *at = name;
}

static void sim_remove_name(struct sim_name **list, const char *path, const struct sim_inode *only)
{
    struct sim_name **at = sim_find(list, path);
    struct sim_name *name = *at;
    if (!name || (only && name->inode != only))
        return;
    *at = name->next;
    free(name);
}

static void sim_free_names(struct sim_name **list)
{
    while (*list) {
        struct sim_name *next = (*list)->next;
        free(*list);
        *list = next;
    }
}

static void sim_copy_names(struct sim_name **to, struct sim_name *from)
{
    sim_free_names(to);
    for (; from; from = from->next)
        sim_set_name(to, from->path, from->inode);
}

static bool sim_is_dir(struct sim_fs *sim, const char *path)
{
    return *path == 0 || strcmp(path, "/") == 0 || strcmp(path, ".") == 0 || *sim_find(&sim->dirs, path);
}

static bool sim_parent_exists(struct sim_fs *sim, const char *path)
{
    char parent[FILE_PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path)
        return true;
    memcpy(parent, path, (size_t)(slash - path));
    parent[slash - path] = 0;
    return sim_is_dir(sim, parent);
}

static void sim_log_name_op(struct sim_fs *sim, struct sim_inode *inode, const char *removed, const char *added)
{
    struct sim_name_op *op = (struct sim_name_op *)sim_alloc(sizeof *op);
    op->inode = inode;
    op->removed = removed ? strdup(removed) : NULL;
    op->added = added ? strdup(added) : NULL;
    struct sim_name_op **at = &sim->pending;
    while (*at)
        at = &(*at)->next;
    *at = op;
}

static void sim_apply_name_op(struct sim_fs *sim, const struct sim_name_op *op)
{
    if (op->removed)
        sim_remove_name(&sim->durable_names, op->removed, op->inode);
    if (op->added)
        sim_set_name(&sim->durable_names, op->added, op->inode);
}

static void sim_free_name_op(struct sim_name_op *op)
{
    free(op->removed);
    free(op->added);
    free(op);
}

/* Drop inodes that no name, pending name and handle refers to. */
static void sim_collect(struct sim_fs *sim)
{
    for (struct sim_name *name = sim->seen_names; name; name = name->next)
        name->inode->is_used = true;
    for (struct sim_name *name = sim->durable_names; name; name = name->next)
        name->inode->is_used = true;
    for (struct sim_name_op *op = sim->pending; op; op = op->next)
        if (op->inode)
            op->inode->is_used = true;
    for (struct sim_file *file = sim->files; file; file = file->next)
        file->inode->is_used = true;
    struct sim_inode **at = &sim->inodes;
    while (*at) {
        struct sim_inode *inode = *at;
        if (inode->is_used) {
            inode->is_used = false;
            at = &inode->next;
            continue;
        }
        *at = inode->next;
        if (sim->free_bytes != UINT64_MAX)
            sim->free_bytes += inode->seen_size;
        free(inode->seen);
        free(inode->durable);
        free(inode->dirty);
        free(inode);
    }
}

/* Faults */

static int sim_op_index(enum sim_fs_op op)
{
    int index = 0;
    while (!((unsigned)op >> index & 1))
        index++;
    return index;
}

static enum err sim_op(struct sim_fs *sim, enum sim_fs_op op)
{
    sim->op_counts[sim_op_index(op)]++;
    if (!(sim->fail_ops & (unsigned)op) || sim->fail_in == 0)
        return ERR_OK;
    if (--sim->fail_in > 0)
        return ERR_OK;
    if (sim->fail_all_after)
        sim->fail_in = 1;
    return sim->fail_err;
}

void sim_fs_fail(struct sim_fs *sim, unsigned ops, uint64_t nth, enum err err, bool and_all_after)
{
    sim->fail_ops = ops;
    sim->fail_in = nth;
    sim->fail_err = err;
    sim->fail_all_after = and_all_after;
}

uint64_t sim_fs_op_count(const struct sim_fs *sim, unsigned ops)
{
    uint64_t count = 0;
    for (int i = 0; i < SIM_FS_OP_KINDS; i++) {
        if (ops >> i & 1)
            count += sim->op_counts[i];
    }
    return count;
}

/* Contents */

static void sim_reserve(struct sim_inode *inode, uint64_t size)
{
    if (size <= inode->capacity)
        return;
    uint64_t capacity = inode->capacity ? inode->capacity : 4096;
    while (capacity < size)
        capacity *= 2;
    uint8_t *seen = (uint8_t *)sim_alloc(capacity);
    uint8_t *durable = (uint8_t *)sim_alloc(capacity);
    uint8_t *dirty = (uint8_t *)sim_alloc(capacity / SIM_FS_SECTOR);
    if (inode->capacity) {
        memcpy(seen, inode->seen, inode->capacity);
        memcpy(durable, inode->durable, inode->capacity);
        memcpy(dirty, inode->dirty, inode->capacity / SIM_FS_SECTOR);
    }
    free(inode->seen);
    free(inode->durable);
    free(inode->dirty);
    inode->seen = seen;
    inode->durable = durable;
    inode->dirty = dirty;
    inode->capacity = capacity;
}

static enum err sim_grow(struct sim_fs *sim, struct sim_inode *inode, uint64_t size)
{
    if (size <= inode->seen_size)
        return ERR_OK;
    uint64_t more = size - inode->seen_size;
    if (sim->free_bytes != UINT64_MAX) {
        if (more > sim->free_bytes)
            return ERR_NOSPACE;
        sim->free_bytes -= more;
    }
    sim_reserve(inode, size);
    inode->seen_size = size;
    inode->size_dirty = true;
    return ERR_OK;
}

static void sim_make_durable(struct sim_inode *inode, uint64_t sector)
{
    memcpy(inode->durable + sector * SIM_FS_SECTOR, inode->seen + sector * SIM_FS_SECTOR, SIM_FS_SECTOR);
    inode->dirty[sector] = 0;
}

/* What becomes of the sectors written. */
enum sim_write_end { SIM_WRITE_DIRTY, SIM_WRITE_DURABLE, SIM_WRITE_HELD };

static void sim_put(struct sim_inode *inode, const uint8_t *data, uint64_t size, uint64_t offset, enum sim_write_end end)
{
    if (size == 0)
        return;
    memcpy(inode->seen + offset, data, size);
    for (uint64_t sector = offset / SIM_FS_SECTOR; sector <= (offset + size - 1) / SIM_FS_SECTOR; sector++) {
        if (end == SIM_WRITE_DURABLE)
            sim_make_durable(inode, sector);
        else
            inode->dirty[sector] = end == SIM_WRITE_HELD ? 2 : 1;
    }
}

static void sim_settle_size(struct sim_inode *inode)
{
    inode->durable_size = inode->seen_size;
    inode->size_dirty = false;
}

/* Of the sectors that are not durable, each stays or goes; what goes returns to the durable contents. */
static void sim_tear(struct sim_fs *sim, struct sim_inode *inode)
{
    uint64_t sectors = inode->capacity / SIM_FS_SECTOR;
    /* Now and then all or nothing, so that the extremes are met as well as mixtures. */
    uint64_t mood = sim_fs_draw(sim) % 4;
    for (uint64_t sector = 0; sector < sectors; sector++) {
        if (!inode->dirty[sector])
            continue;
        bool stays = mood == 0 ? true : mood == 1 ? false : sim_fs_draw(sim) & 1;
        if (stays) {
            sim_make_durable(inode, sector);
            if (inode->durable_size < inode->seen_size && (sector + 1) * SIM_FS_SECTOR > inode->durable_size) {
                uint64_t end = (sector + 1) * SIM_FS_SECTOR;
                inode->durable_size = end < inode->seen_size ? end : inode->seen_size;
            }
        } else {
            memcpy(inode->seen + sector * SIM_FS_SECTOR, inode->durable + sector * SIM_FS_SECTOR, SIM_FS_SECTOR);
            inode->dirty[sector] = 0;
        }
    }
}

static void sim_complete_inode(struct sim_inode *inode)
{
    bool any = false;
    for (uint64_t sector = 0; sector < inode->capacity / SIM_FS_SECTOR; sector++) {
        if (inode->dirty[sector] == 2) {
            sim_make_durable(inode, sector);
            any = true;
        }
    }
    if (any)
        sim_settle_size(inode);
}

/* A process has one write under way: when it begins the next, the one before had returned. */
static void sim_complete_process(struct sim_fs *sim, int process)
{
    for (struct sim_file *file = sim->files; file; file = file->next) {
        if (file->process == process && file->flags & FILE_DSYNC)
            sim_complete_inode(file->inode);
    }
}

static enum err sim_write(struct sim_file *file, const uint8_t *data, size_t size, uint64_t offset)
{
    struct sim_fs *sim = (struct sim_fs *)file->file.fs;
    struct sim_inode *inode = file->inode;
    if (file->dead || !(file->flags & FILE_WRITE))
        return ERR_IO;
    if (file->file.direct) {
        CHECK(offset % file->file.alignment == 0);
        CHECK(size % file->file.alignment == 0);
    }
    enum err fault = sim_op(sim, SIM_FS_WRITE);
    enum err err = sim_grow(sim, inode, offset + size);
    if (err)
        return err;
    if (fault) {
        for (size_t at = 0; at < size;) {
            size_t part = SIM_FS_SECTOR - (offset + at) % SIM_FS_SECTOR;
            if (part > size - at)
                part = size - at;
            if (sim_fs_draw(sim) & 1)
                sim_put(inode, data + at, part, offset + at, sim_fs_draw(sim) & 1 ? SIM_WRITE_DIRTY : SIM_WRITE_DURABLE);
            at += part;
        }
        return fault;
    }
    if (!(file->flags & FILE_DSYNC)) {
        sim_put(inode, data, size, offset, SIM_WRITE_DIRTY);
    } else if (sim->hold) {
        sim_complete_process(sim, file->process);
        sim_put(inode, data, size, offset, SIM_WRITE_HELD);
        sim->has_held = true;
    } else {
        sim_put(inode, data, size, offset, SIM_WRITE_DURABLE);
        sim_settle_size(inode);
    }
    return ERR_OK;
}

/* A write was under way when its process died: some sectors reached the disk's cache (visible, not yet durable), others nothing at all. */
static void sim_tear_held(struct sim_fs *sim, struct sim_inode *inode)
{
    for (uint64_t sector = 0; sector < inode->capacity / SIM_FS_SECTOR; sector++) {
        if (inode->dirty[sector] != 2)
            continue;
        inode->dirty[sector] = sim_fs_draw(sim) & 1;
        if (!inode->dirty[sector])
            memcpy(inode->seen + sector * SIM_FS_SECTOR, inode->durable + sector * SIM_FS_SECTOR, SIM_FS_SECTOR);
    }
}

static void sim_kill_files(struct sim_fs *sim, int process)
{
    for (struct sim_file *file = sim->files; file; file = file->next) {
        if (process >= 0 && file->process != process)
            continue;
        file->dead = true;
        if (file->inode->lock_owner == file)
            file->inode->lock_owner = NULL;
        if (file->flags & FILE_DSYNC)
            sim_tear_held(sim, file->inode);
    }
}

void sim_fs_kill_process(struct sim_fs *sim, int process)
{
    sim_kill_files(sim, process);
    sim->has_held = false;
    for (struct sim_inode *inode = sim->inodes; inode; inode = inode->next)
        sim->has_held |= inode->capacity && memchr(inode->dirty, 2, inode->capacity / SIM_FS_SECTOR);
}

void sim_fs_kill(struct sim_fs *sim) { sim_fs_kill_process(sim, -1); }

void sim_fs_crash(struct sim_fs *sim)
{
    sim_kill_files(sim, -1);
    sim->has_held = false;
    sim->fail_ops = 0;
    sim->hold = false;
    for (struct sim_inode *inode = sim->inodes; inode; inode = inode->next) {
        if (inode->size_dirty && sim_fs_draw(sim) & 1) /* the metadata may have gone to disk by itself */
            sim_settle_size(inode);
        sim_tear(sim, inode);
        if (inode->durable_size < inode->seen_size)
            memset(inode->durable + inode->durable_size, 0, inode->seen_size - inode->durable_size);
        if (sim->free_bytes != UINT64_MAX && inode->seen_size > inode->durable_size)
            sim->free_bytes += inode->seen_size - inode->durable_size;
        inode->seen_size = inode->durable_size;
        inode->size_dirty = false;
        if (inode->capacity)
            memcpy(inode->seen, inode->durable, inode->capacity);
    }
    while (sim->pending) {
        struct sim_name_op *op = sim->pending;
        sim->pending = op->next;
        if (sim_fs_draw(sim) & 1)
            sim_apply_name_op(sim, op);
        sim_free_name_op(op);
    }
    sim_copy_names(&sim->seen_names, sim->durable_names);
    sim_collect(sim);
}

void sim_fs_set_process(struct sim_fs *sim, int process) { sim->process = process; }
void sim_fs_set_free(struct sim_fs *sim, uint64_t bytes) { sim->free_bytes = bytes; }
void sim_fs_hold(struct sim_fs *sim, bool hold) { sim->hold = hold; }
bool sim_fs_has_held(const struct sim_fs *sim) { return sim->has_held; }
void sim_fs_refuse_direct(struct sim_fs *sim, bool refuse) { sim->refuse_direct = refuse; }

void sim_fs_complete(struct sim_fs *sim)
{
    for (struct sim_inode *inode = sim->inodes; inode; inode = inode->next)
        sim_complete_inode(inode);
    sim->has_held = false;
}

/* Behind the back */

static struct sim_inode *sim_lookup(struct sim_fs *sim, const char *path)
{
    char clean[FILE_PATH_MAX];
    sim_path(clean, path);
    struct sim_name *name = *sim_find(&sim->seen_names, clean);
    return name ? name->inode : NULL;
}

enum err sim_fs_contents(struct sim_fs *sim, const char *path, const uint8_t **data_out, uint64_t *size_out)
{
    struct sim_inode *inode = sim_lookup(sim, path);
    if (!inode)
        return ERR_NOTFOUND;
    *data_out = inode->seen;
    *size_out = inode->seen_size;
    return ERR_OK;
}

enum err sim_fs_overwrite(struct sim_fs *sim, const char *path, uint64_t offset, const void *data, size_t size)
{
    struct sim_inode *inode = sim_lookup(sim, path);
    if (!inode)
        return ERR_NOTFOUND;
    if (offset + size > inode->seen_size)
        return ERR_INVALID;
    memcpy(inode->seen + offset, data, size);
    memcpy(inode->durable + offset, data, size);
    return ERR_OK;
}

enum err sim_fs_flip_bit(struct sim_fs *sim, const char *path, uint64_t bit_index)
{
    struct sim_inode *inode = sim_lookup(sim, path);
    if (!inode)
        return ERR_NOTFOUND;
    if (bit_index / 8 >= inode->seen_size)
        return ERR_INVALID;
    inode->seen[bit_index / 8] ^= (uint8_t)(1u << bit_index % 8);
    inode->durable[bit_index / 8] ^= (uint8_t)(1u << bit_index % 8);
    return ERR_OK;
}

bool sim_fs_exists(struct sim_fs *sim, const char *path) { return sim_lookup(sim, path); }

/* The table of functions */

static enum err sim_open(struct fs *fs, struct file **file_out, const char *path, unsigned flags)
{
    struct sim_fs *sim = (struct sim_fs *)fs;
    char clean[FILE_PATH_MAX];
    sim_path(clean, path);
    enum err err = sim_op(sim, SIM_FS_OPEN);
    if (err)
        return err;
    if (!sim_parent_exists(sim, clean))
        return ERR_NOTFOUND;
    struct sim_name *name = *sim_find(&sim->seen_names, clean);
    if (!name && !(flags & FILE_CREATE))
        return ERR_NOTFOUND;
    if (name && flags & FILE_EXCLUSIVE)
        return ERR_EXISTS;
    struct sim_inode *inode;
    if (name) {
        inode = name->inode;
    } else {
        inode = (struct sim_inode *)sim_alloc(sizeof *inode);
        inode->next = sim->inodes;
        sim->inodes = inode;
        sim_set_name(&sim->seen_names, clean, inode);
        sim_log_name_op(sim, inode, NULL, clean);
    }
    if (flags & FILE_TRUNCATE && inode->seen_size) {
        if (sim->free_bytes != UINT64_MAX)
            sim->free_bytes += inode->seen_size;
        memset(inode->seen, 0, inode->capacity);
        memset(inode->dirty, 1, inode->capacity / SIM_FS_SECTOR);
        inode->seen_size = 0;
        inode->size_dirty = true;
    }
    struct sim_file *file = (struct sim_file *)sim_alloc(sizeof *file);
    file->file.fs = fs;
    file->file.alignment = sim->alignment;
    file->file.direct = flags & FILE_DIRECT && !sim->refuse_direct;
    file->inode = inode;
    file->flags = flags;
    file->process = sim->process;
    file->next = sim->files;
    sim->files = file;
    *file_out = &file->file;
    return ERR_OK;
}

static void sim_close(struct file *base)
{
    struct sim_file *file = (struct sim_file *)base;
    struct sim_fs *sim = (struct sim_fs *)base->fs;
    struct sim_file **at = &sim->files;
    while (*at != file) {
        CHECK(*at);
        at = &(*at)->next;
    }
    *at = file->next;
    if (file->inode->lock_owner == file)
        file->inode->lock_owner = NULL;
    if (!file->dead && file->flags & FILE_DSYNC) /* its write had returned */
        sim_complete_inode(file->inode);
    free(file);
    sim_collect(sim);
}

static enum err sim_pread(struct file *base, size_t *got_out, void *data, size_t size, uint64_t offset)
{
    struct sim_file *file = (struct sim_file *)base;
    if (file->dead || !(file->flags & FILE_READ))
        return ERR_IO;
    enum err err = sim_op((struct sim_fs *)base->fs, SIM_FS_READ);
    if (err)
        return err;
    if (base->direct) {
        CHECK(offset % base->alignment == 0);
        CHECK(size % base->alignment == 0);
        CHECK((uintptr_t)data % base->alignment == 0);
    }
    uint64_t end = file->inode->seen_size;
    size_t got = offset >= end ? 0 : end - offset < size ? (size_t)(end - offset) : size;
    if (got)
        memcpy(data, file->inode->seen + offset, got);
    *got_out = got;
    return ERR_OK;
}

static enum err sim_pwrite(struct file *base, const void *data, size_t size, uint64_t offset)
{
    if (base->direct)
        CHECK((uintptr_t)data % base->alignment == 0);
    return sim_write((struct sim_file *)base, (const uint8_t *)data, size, offset);
}

static enum err sim_pwritev(struct file *base, const struct iovec *iov, int iov_count, uint64_t offset)
{
    size_t size = 0;
    for (int i = 0; i < iov_count; i++) {
        if (base->direct) {
            CHECK((uintptr_t)iov[i].iov_base % base->alignment == 0);
            CHECK(iov[i].iov_len % base->alignment == 0);
        }
        size += iov[i].iov_len;
    }
    uint8_t *data = (uint8_t *)sim_alloc(size);
    size_t at = 0;
    for (int i = 0; i < iov_count; i++) {
        memcpy(data + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    enum err err = sim_write((struct sim_file *)base, data, size, offset);
    free(data);
    return err;
}

static enum err sim_sync(struct file *base)
{
    struct sim_file *file = (struct sim_file *)base;
    struct sim_inode *inode = file->inode;
    if (file->dead)
        return ERR_IO;
    enum err fault = sim_op((struct sim_fs *)base->fs, SIM_FS_SYNC);
    for (uint64_t sector = 0; sector < inode->capacity / SIM_FS_SECTOR; sector++) {
        if (inode->dirty[sector] != 1)
            continue;
        if (fault)
            inode->dirty[sector] = 0;
        else
            sim_make_durable(inode, sector);
    }
    if (!fault)
        sim_settle_size(inode);
    inode->size_dirty = false;
    return fault;
}

static enum err sim_truncate(struct file *base, uint64_t size)
{
    struct sim_file *file = (struct sim_file *)base;
    struct sim_inode *inode = file->inode;
    struct sim_fs *sim = (struct sim_fs *)base->fs;
    if (file->dead || !(file->flags & FILE_WRITE))
        return ERR_IO;
    enum err err = sim_op(sim, SIM_FS_TRUNCATE);
    if (err)
        return err;
    if (size >= inode->seen_size)
        return sim_grow(sim, inode, size);
    memset(inode->seen + size, 0, inode->seen_size - size);
    for (uint64_t sector = size / SIM_FS_SECTOR; sector <= (inode->seen_size - 1) / SIM_FS_SECTOR; sector++)
        inode->dirty[sector] = 1;
    if (sim->free_bytes != UINT64_MAX)
        sim->free_bytes += inode->seen_size - size;
    inode->seen_size = size;
    inode->size_dirty = true;
    return ERR_OK;
}

static enum err sim_size(struct file *base, uint64_t *size_out)
{
    struct sim_file *file = (struct sim_file *)base;
    if (file->dead)
        return ERR_IO;
    *size_out = file->inode->seen_size;
    return ERR_OK;
}

static enum err sim_lock(struct file *base)
{
    struct sim_file *file = (struct sim_file *)base;
    if (file->dead)
        return ERR_IO;
    if (file->inode->lock_owner && file->inode->lock_owner != file)
        return ERR_LOCKED;
    file->inode->lock_owner = file;
    return ERR_OK;
}

static enum err sim_rename(struct fs *fs, const char *from, const char *to)
{
    struct sim_fs *sim = (struct sim_fs *)fs;
    char a[FILE_PATH_MAX], b[FILE_PATH_MAX];
    sim_path(a, from);
    sim_path(b, to);
    enum err err = sim_op(sim, SIM_FS_RENAME);
    if (err)
        return err;
    struct sim_name *name = *sim_find(&sim->seen_names, a);
    if (!name || !sim_parent_exists(sim, b))
        return ERR_NOTFOUND;
    struct sim_inode *inode = name->inode;
    sim_remove_name(&sim->seen_names, a, NULL);
    sim_set_name(&sim->seen_names, b, inode);
    sim_log_name_op(sim, inode, a, b);
    sim_collect(sim);
    return ERR_OK;
}

static enum err sim_unlink(struct fs *fs, const char *path)
{
    struct sim_fs *sim = (struct sim_fs *)fs;
    char clean[FILE_PATH_MAX];
    sim_path(clean, path);
    enum err err = sim_op(sim, SIM_FS_UNLINK);
    if (err)
        return err;
    struct sim_name *name = *sim_find(&sim->seen_names, clean);
    if (!name)
        return ERR_NOTFOUND;
    sim_log_name_op(sim, name->inode, clean, NULL);
    sim_remove_name(&sim->seen_names, clean, NULL);
    return ERR_OK;
}

static enum err sim_mkdir(struct fs *fs, const char *path)
{
    struct sim_fs *sim = (struct sim_fs *)fs;
    char clean[FILE_PATH_MAX];
    sim_path(clean, path);
    if (sim_is_dir(sim, clean))
        return ERR_EXISTS;
    if (!sim_parent_exists(sim, clean))
        return ERR_NOTFOUND;
    sim_set_name(&sim->dirs, clean, NULL);
    return ERR_OK;
}

static enum err sim_list(struct fs *fs, const char *path, void *context, void (*on_name)(void *context, const char *name))
{
    struct sim_fs *sim = (struct sim_fs *)fs;
    char clean[FILE_PATH_MAX];
    sim_path(clean, path);
    if (!sim_is_dir(sim, clean))
        return ERR_NOTFOUND;
    for (int kind = 0; kind < 2; kind++) {
        for (struct sim_name *name = kind ? sim->dirs : sim->seen_names; name; name = name->next) {
            const char *slash = strrchr(name->path, '/');
            if (sim_in_dir(name->path, clean))
                on_name(context, slash ? slash + 1 : name->path);
        }
    }
    return ERR_OK;
}

static enum err sim_sync_dir(struct fs *fs, const char *path)
{
    struct sim_fs *sim = (struct sim_fs *)fs;
    char clean[FILE_PATH_MAX];
    sim_path(clean, path);
    if (!sim_is_dir(sim, clean))
        return ERR_NOTFOUND;
    enum err err = sim_op(sim, SIM_FS_SYNC);
    if (err)
        return err;
    struct sim_name_op **at = &sim->pending;
    while (*at) {
        struct sim_name_op *op = *at;
        /* A rename between directories settles with the first of the two that is synced. */
        if (!(op->added && sim_in_dir(op->added, clean)) && !(op->removed && sim_in_dir(op->removed, clean))) {
            at = &op->next;
            continue;
        }
        *at = op->next;
        sim_apply_name_op(sim, op);
        sim_free_name_op(op);
    }
    sim_collect(sim);
    return ERR_OK;
}

static enum err sim_free_bytes(struct fs *fs, uint64_t *bytes_out, const char *path)
{
    (void)path;
    *bytes_out = ((struct sim_fs *)fs)->free_bytes;
    return ERR_OK;
}

static enum err sim_random(struct fs *fs, void *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)data)[i] = (uint8_t)sim_fs_draw((struct sim_fs *)fs);
    return ERR_OK;
}

static const struct fs_ops sim_ops = {
    .open = sim_open,
    .close = sim_close,
    .pread = sim_pread,
    .pwrite = sim_pwrite,
    .pwritev = sim_pwritev,
    .sync = sim_sync,
    .truncate = sim_truncate,
    .size = sim_size,
    .lock = sim_lock,
    .rename = sim_rename,
    .unlink = sim_unlink,
    .mkdir = sim_mkdir,
    .list = sim_list,
    .sync_dir = sim_sync_dir,
    .free_bytes = sim_free_bytes,
    .random = sim_random,
};

struct sim_fs *sim_fs_new(uint64_t seed, uint32_t alignment)
{
    struct sim_fs *sim = (struct sim_fs *)sim_alloc(sizeof *sim);
    CHECK(alignment >= FILE_ALIGNMENT_MIN);
    CHECK(alignment <= FILE_ALIGNMENT_MAX);
    sim->fs.ops = &sim_ops;
    sim->random = seed;
    sim->alignment = alignment;
    sim->free_bytes = UINT64_MAX;
    return sim;
}

void sim_fs_free(struct sim_fs *sim)
{
    CHECK(!sim->files);
    while (sim->pending) {
        struct sim_name_op *op = sim->pending;
        sim->pending = op->next;
        sim_free_name_op(op);
    }
    sim_free_names(&sim->seen_names);
    sim_free_names(&sim->durable_names);
    sim_free_names(&sim->dirs);
    sim_collect(sim);
    free(sim);
}

struct fs *sim_fs_fs(struct sim_fs *sim) { return &sim->fs; }
