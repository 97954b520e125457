/* Preloaded into a process, counts what it changes below one path, and lets the n-th such operation fail.
 *
 * An operation is a call into libc that changes the disk: a file opened to be written, a write, a truncation, a sync,
 * a rename, a removal, a new folder, a changed mode, and the close of a file that was open to be written. Everything
 * else, and everything elsewhere, goes through untouched. Reached from Python by ctypes: faults_arm, faults_disarm.
 *
 * Beside errors and kills there is the loss of power, by the harshest reading of POSIX: what no fsync has brought to
 * disk is gone. Contents go back to the size at their last fsync; new names that no fsync of their folder has made
 * last are undone. Removals have happened.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum operation { OPEN, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, MODE, CLOSE };
static const char *const NAMES[] = {"open", "write", "truncate", "sync", "rename", "unlink", "mkdir", "mode", "close"};

/* The order is that of shim.KINDS. */
enum kind { COUNT, NO_SPACE, IO_ERROR, SHORT, FULL, KILL, KILL_HALFWAY, POWER, POWER_DATA, READ_ONLY };
enum verdict { GO, FAIL, HALF, HALF_THEN_KILL };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char prefix[PATH_MAX];
static size_t prefix_length;
static volatile int armed;
static int kind, full, log_handle = -1;
static long at, count;

#define REAL(name, type, ...)                                  \
    static type (*real)(__VA_ARGS__);                          \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int real_close(int handle) {
    REAL(close, int, int);
    return real(handle);
}
static ssize_t real_write(int handle, const void *data, size_t size) {
    REAL(write, ssize_t, int, const void *, size_t);
    return real(handle, data, size);
}
static int real_rename(const char *from, const char *to) {
    REAL(rename, int, const char *, const char *);
    return real(from, to);
}
static int real_open(const char *path, int flags) {
    REAL(open64, int, const char *, int, ...);
    return real(path, flags);
}
static int real_remove(const char *path, int folder) {
    REAL(unlinkat, int, int, const char *, int);
    return real(AT_FDCWD, path, folder ? AT_REMOVEDIR : 0);
}
static int real_truncate(int handle, off_t size) {
    REAL(ftruncate64, int, int, off_t);
    return real(handle, size);
}

/* ---- paths */

static int of_handle(int handle, char *found) {
    char link[64];
    snprintf(link, sizeof link, handle == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, found, PATH_MAX - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return found[0] == '/';
}

/* The absolute path, `.` and `..` taken out by their letters: links below the prefix are not followed. */
static int absolute(int folder, const char *path, char *found) {
    char whole[2 * PATH_MAX];
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char base[PATH_MAX];
        if (!of_handle(folder, base)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    size_t length = 0;
    char *rest;
    for (char *part = strtok_r(whole, "/", &rest); part; part = strtok_r(NULL, "/", &rest)) {
        if (!strcmp(part, ".")) continue;
        if (!strcmp(part, "..")) {
            while (length && found[--length] != '/') continue;
            continue;
        }
        size_t size = strlen(part);
        if (length + size + 2 > PATH_MAX) return 0;
        found[length++] = '/';
        memcpy(found + length, part, size);
        length += size;
    }
    found[length] = 0;
    return 1;
}

static int below(const char *path) { return !strncmp(path, prefix, prefix_length); }

/* The watched folder itself: its prefix ends in a slash, which its own path does not. */
static int is_whole(const char *path) {
    size_t length = prefix_length - 1;
    return strlen(path) == length && !strncmp(path, prefix, length);
}

static int watched_path(int folder, const char *path, char *found) {
    return armed && path && absolute(folder, path, found) && below(found);
}

static int watched_handle(int handle, char *found) {
    return armed && handle >= 0 && handle != log_handle && of_handle(handle, found) && below(found);
}

/* Of the folder itself nothing but the sync counts, which makes the names in it last. */
static int watched_sync(int handle, char *found) {
    return armed && handle >= 0 && handle != log_handle && of_handle(handle, found) && (below(found) || is_whole(found));
}

static int is_writable(int handle) {
    int flags = fcntl(handle, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
}

/* ---- what a loss of power would undo */

struct content {
    dev_t device;
    ino_t number;
    int handle, dirty;
    off_t synced;
};
struct name {
    enum operation done;
    char from[PATH_MAX], to[PATH_MAX], replaced[PATH_MAX];
};
static struct content *contents;
static struct name *names;
static int content_count, name_count, stashed;

static int keeps_account(void) { return kind == POWER || kind == POWER_DATA; }

static struct content *content_of(int handle) {
    struct stat facts;
    if (fstat(handle, &facts) || !S_ISREG(facts.st_mode)) return NULL;
    for (int one = 0; one < content_count; one++)
        if (contents[one].device == facts.st_dev && contents[one].number == facts.st_ino) return contents + one;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    int own = real_open(link, O_RDWR | O_CLOEXEC);
    if (own < 0) return NULL;
    contents = realloc(contents, sizeof *contents * (content_count + 1));
    contents[content_count] = (struct content){facts.st_dev, facts.st_ino, own, 0, 0};
    return contents + content_count++;
}

static void made_dirty(int handle) {
    if (!keeps_account()) return;
    pthread_mutex_lock(&lock);
    struct content *found = content_of(handle);
    if (found) found->dirty = 1;
    pthread_mutex_unlock(&lock);
}

static void parent_of(const char *path, char *found) {
    strcpy(found, path);
    *strrchr(found, '/') = 0;
}

static void moved(char *path, const char *from, const char *to) {
    size_t length = strlen(from);
    if (strncmp(path, from, length) || path[length] != '/') return;
    char rest[PATH_MAX];
    strcpy(rest, path + length);
    snprintf(path, PATH_MAX, "%.2000s%.2000s", to, rest);
}

static void made_last(int handle) {
    struct stat facts;
    char folder[PATH_MAX], parent[PATH_MAX];
    if (!keeps_account() || fstat(handle, &facts)) return;
    if (S_ISREG(facts.st_mode)) {
        struct content *found = content_of(handle);
        if (found) found->dirty = 0, found->synced = facts.st_size;
        return;
    }
    if (!of_handle(handle, folder)) return;
    int kept = 0;
    for (int one = 0; one < name_count; one++) {
        parent_of(names[one].to, parent);
        if (strcmp(parent, folder)) {
            names[kept++] = names[one];
            continue;
        }
        if (names[one].replaced[0]) real_remove(names[one].replaced, 0);
        if (names[one].done == RENAME)
            for (int earlier = 0; earlier < kept; earlier++) {
                moved(names[earlier].from, names[one].from, names[one].to);
                moved(names[earlier].to, names[one].from, names[one].to);
            }
    }
    name_count = kept;
}

static struct name *new_name(enum operation done, const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    names = realloc(names, sizeof *names * (name_count + 1));
    struct name *made = names + name_count++;
    made->done = done;
    strcpy(made->from, from);
    strcpy(made->to, to);
    made->replaced[0] = 0;
    pthread_mutex_unlock(&lock);
    return made;
}

/* Before a rename: what it is about to replace is kept under another name, beside the prefix. */
static void about_to_rename(const char *from, const char *to) {
    if (kind != POWER) return;
    struct name *made = new_name(RENAME, from, to);
    struct stat facts;
    if (lstat(to, &facts) || S_ISDIR(facts.st_mode)) return;
    snprintf(made->replaced, PATH_MAX, "%.4000s.replaced-%d-%d", prefix, getpid(), stashed++);
    REAL(linkat, int, int, const char *, int, const char *, int);
    if (real(AT_FDCWD, to, AT_FDCWD, made->replaced, 0)) made->replaced[0] = 0;
}

static int remove_any(const char *path, const struct stat *facts, int type, struct FTW *place) {
    (void)facts, (void)place;
    return real_remove(path, type == FTW_DP);
}

static void lose_power(void) {
    for (int one = 0; one < content_count; one++)
        if (contents[one].dirty) real_truncate(contents[one].handle, contents[one].synced);
    while (kind == POWER && name_count) {
        struct name *last = names + --name_count;
        if (last->done != RENAME) {
            nftw(last->to, remove_any, 16, FTW_DEPTH | FTW_PHYS);
            continue;
        }
        real_rename(last->to, last->from);
        // Where the folder itself is gone by now, so is what was replaced in it.
        if (last->replaced[0] && real_rename(last->replaced, last->to)) real_remove(last->replaced, 0);
    }
}

static void forget(void) {
    for (int one = 0; one < content_count; one++) real_close(contents[one].handle);
    for (int one = 0; one < name_count; one++)
        if (names[one].replaced[0]) real_remove(names[one].replaced, 0);
    content_count = name_count = 0;
}

/* ---- the fault */

static void end_here(void) {
    armed = 0;
    if (keeps_account()) lose_power();
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int takes_space(enum operation operation) { return operation != UNLINK && operation != MODE; }

/* Count the operation; return what is to become of it, with errno set where it fails. */
static enum verdict next(enum operation operation, const char *path, long size) {
    pthread_mutex_lock(&lock);
    enum verdict verdict = GO;
    long number = ++count;
    if (log_handle >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld\t%s\t%ld\t%s\n", number, NAMES[operation], size, path);
        if (real_write(log_handle, line, length) != length) abort();
    }
    if (full && takes_space(operation)) verdict = FAIL, errno = ENOSPC;
    if (kind == READ_ONLY && number >= at) verdict = FAIL, errno = EROFS;
    if (number == at) switch (kind) {
        case NO_SPACE:
            verdict = FAIL, errno = ENOSPC;
            break;
        case IO_ERROR:
            verdict = FAIL, errno = EIO;
            break;
        case SHORT:
            verdict = HALF;
            break;
        case FULL:
            full = 1, verdict = operation == WRITE ? HALF : FAIL, errno = ENOSPC;
            break;
        case KILL_HALFWAY:
            verdict = HALF_THEN_KILL;
            break;
        case KILL:
        case POWER:
        case POWER_DATA:
            end_here();
        }
    pthread_mutex_unlock(&lock);
    return verdict;
}

/* The prefix is a path; what begins with its letters is watched. Kinds are those of the enumeration; `number` is the
 * operation, from 1, that fails. A log handle gets a line an operation; -1 for none. */
void faults_arm(const char *path, int what, long number, int handle) {
    forget();
    snprintf(prefix, sizeof prefix, "%s", path);
    prefix_length = strlen(prefix);
    kind = what, at = number, log_handle = handle, count = 0, full = 0;
    armed = 1;
}

/* Returns how many operations there were. */
long faults_disarm(void) {
    armed = 0, full = 0;
    forget();
    return count;
}

/* ---- files opened to be written */

#define CREATED(handle, path) \
    if (kind == POWER && handle >= 0 && is_new) new_name(OPEN, path, path)

static int open_watched(int folder, const char *path, int flags, mode_t mode) {
    REAL(openat64, int, int, const char *, int, ...);
    char found[PATH_MAX];
    if ((flags & O_ACCMODE) == O_RDONLY || (flags & (O_PATH | O_DIRECTORY)) || !watched_path(folder, path, found))
        return real(folder, path, flags, mode);
    struct stat facts;
    int is_new = lstat(found, &facts) != 0;
    if (next(OPEN, found, 0) == FAIL) return -1;
    int handle = real(folder, path, flags, mode);
    if (handle >= 0 && (is_new || flags & O_TRUNC)) made_dirty(handle);
    CREATED(handle, found);
    return handle;
}

#define MODE_OF(flags)                                     \
    mode_t mode = 0;                                       \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list rest;                                      \
        va_start(rest, flags);                             \
        mode = va_arg(rest, mode_t);                       \
        va_end(rest);                                      \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags);
    return open_watched(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE_OF(flags);
    return open_watched(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    MODE_OF(flags);
    return open_watched(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE_OF(flags);
    return open_watched(folder, path, flags | O_LARGEFILE, mode);
}
int creat(const char *path, mode_t mode) { return open_watched(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

#define FOPEN(name)                                                          \
    FILE *name(const char *path, const char *how) {                          \
        REAL(name, FILE *, const char *, const char *);                      \
        char found[PATH_MAX];                                                \
        if (!strpbrk(how, "wa+") || !watched_path(AT_FDCWD, path, found)) return real(path, how); \
        struct stat facts;                                                   \
        int is_new = lstat(found, &facts) != 0;                              \
        if (next(OPEN, found, 0) == FAIL) return NULL;                       \
        FILE *file = real(path, how);                                        \
        if (file && (is_new || strchr(how, 'w'))) made_dirty(fileno(file));  \
        CREATED((file ? 0 : -1), found);                                     \
        return file;                                                         \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* ---- writes and truncations */

static ssize_t half(int handle, const void *data, size_t size, off_t offset, enum verdict verdict) {
    REAL(pwrite64, ssize_t, int, const void *, size_t, off_t);
    made_dirty(handle);
    ssize_t done = offset < 0 ? real_write(handle, data, size / 2) : real(handle, data, size / 2, offset);
    if (verdict == HALF_THEN_KILL) end_here();
    if (!done && size) {
        // A write of one byte has no half, and one that returns 0 is no short write.
        errno = ENOSPC;
        return -1;
    }
    return done;
}

/* Where the write is not to go on: its result. */
static int stops(int handle, const void *data, size_t size, off_t offset, ssize_t *result) {
    char found[PATH_MAX];
    if (!watched_handle(handle, found)) return 0;
    enum verdict verdict = next(WRITE, found, size);
    if (verdict == GO) {
        made_dirty(handle);
        return 0;
    }
    *result = verdict == FAIL ? -1 : half(handle, data, size, offset, verdict);
    return 1;
}

static int stops_parts(int handle, const struct iovec *parts, int number, off_t offset, ssize_t *result) {
    char found[PATH_MAX];
    if (!watched_handle(handle, found)) return 0;
    size_t size = 0;
    for (int one = 0; one < number; one++) size += parts[one].iov_len;
    char *whole = malloc(size + 1), *end = whole;
    for (int one = 0; one < number; one++) end = mempcpy(end, parts[one].iov_base, parts[one].iov_len);
    int stopped = stops(handle, whole, size, offset, result), error = errno;
    free(whole);
    errno = error;
    return stopped;
}

ssize_t write(int handle, const void *data, size_t size) {
    ssize_t result;
    return armed && stops(handle, data, size, -1, &result) ? result : real_write(handle, data, size);
}
ssize_t writev(int handle, const struct iovec *parts, int number) {
    REAL(writev, ssize_t, int, const struct iovec *, int);
    ssize_t result;
    return armed && stops_parts(handle, parts, number, -1, &result) ? result : real(handle, parts, number);
}
#define PWRITE(name)                                                                              \
    ssize_t name(int handle, const void *data, size_t size, off_t offset) {                       \
        REAL(name, ssize_t, int, const void *, size_t, off_t);                                    \
        ssize_t result;                                                                           \
        return armed && stops(handle, data, size, offset, &result) ? result : real(handle, data, size, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
#define PWRITEV(name)                                                                             \
    ssize_t name(int handle, const struct iovec *parts, int number, off_t offset) {               \
        REAL(name, ssize_t, int, const struct iovec *, int, off_t);                               \
        ssize_t result;                                                                           \
        return armed && stops_parts(handle, parts, number, offset, &result) ? result              \
                                                                            : real(handle, parts, number, offset); \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

/* Copies inside of the kernel: whole or not at all. */
static int copies(int handle, size_t size) {
    char found[PATH_MAX];
    if (!watched_handle(handle, found)) return 1;
    enum verdict verdict = next(WRITE, found, size);
    if (verdict == HALF_THEN_KILL) end_here();
    if (verdict == FAIL) return 0;
    made_dirty(handle);
    return 1;
}
#define SENDFILE(name)                                                     \
    ssize_t name(int to, int from, off_t *offset, size_t size) {           \
        REAL(name, ssize_t, int, int, off_t *, size_t);                    \
        return armed && !copies(to, size) ? -1 : real(to, from, offset, size); \
    }
SENDFILE(sendfile)
SENDFILE(sendfile64)
ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t size, unsigned flags) {
    REAL(copy_file_range, ssize_t, int, off64_t *, int, off64_t *, size_t, unsigned);
    return armed && !copies(to, size) ? -1 : real(from, start, to, place, size, flags);
}

static int truncates(int handle, off_t size) {
    char found[PATH_MAX];
    if (!watched_handle(handle, found)) return 1;
    if (next(TRUNCATE, found, size) == FAIL) return 0;
    made_dirty(handle);
    return 1;
}
#define FTRUNCATE(name)                                              \
    int name(int handle, off_t size) {                               \
        REAL(name, int, int, off_t);                                 \
        return armed && !truncates(handle, size) ? -1 : real(handle, size); \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)
#define FALLOCATE(name)                                                          \
    int name(int handle, int mode, off_t start, off_t size) {                    \
        REAL(name, int, int, int, off_t, off_t);                                 \
        return armed && !truncates(handle, size) ? -1 : real(handle, mode, start, size); \
    }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)
#define POSIX_FALLOCATE(name)                                                      \
    int name(int handle, off_t start, off_t size) {                                \
        REAL(name, int, int, off_t, off_t);                                        \
        return armed && !truncates(handle, size) ? errno : real(handle, start, size); \
    }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

/* ---- syncs and closes */

#define FSYNC(name)                                                                    \
    int name(int handle) {                                                             \
        REAL(name, int, int);                                                          \
        char found[PATH_MAX];                                                          \
        if (!watched_sync(handle, found)) return real(handle);                         \
        if (next(SYNC, found, 0) == FAIL) return -1;                                   \
        int result = real(handle), error = errno;                                      \
        pthread_mutex_lock(&lock);                                                     \
        if (!result) made_last(handle);                                                \
        pthread_mutex_unlock(&lock);                                                   \
        errno = error;                                                                 \
        return result;                                                                 \
    }
FSYNC(fsync)
FSYNC(fdatasync)

int close(int handle) {
    char found[PATH_MAX];
    if (!watched_handle(handle, found) || !is_writable(handle)) return real_close(handle);
    enum verdict verdict = next(CLOSE, found, 0);
    int error = errno, result = real_close(handle);
    if (verdict != FAIL) return result;
    errno = error;
    return -1;
}
int fclose(FILE *file) {
    REAL(fclose, int, FILE *);
    char found[PATH_MAX];
    int handle = fileno(file);
    if (!watched_handle(handle, found) || !is_writable(handle)) return real(file);
    enum verdict verdict = next(CLOSE, found, 0);
    int error = errno, result = real(file);
    if (verdict != FAIL) return result;
    errno = error;
    return EOF;
}

/* ---- names */

static int renames(int from_folder, const char *from, int to_folder, const char *to) {
    char source[PATH_MAX], target[PATH_MAX];
    if (!armed || !absolute(from_folder, from, source) || !absolute(to_folder, to, target)) return 1;
    if (!below(source) && !below(target)) return 1;
    if (next(RENAME, target, 0) == FAIL) return 0;
    about_to_rename(source, target);
    return 1;
}
int rename(const char *from, const char *to) {
    return renames(AT_FDCWD, from, AT_FDCWD, to) ? real_rename(from, to) : -1;
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat, int, int, const char *, int, const char *);
    return renames(from_folder, from, to_folder, to) ? real(from_folder, from, to_folder, to) : -1;
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(renameat2, int, int, const char *, int, const char *, unsigned);
    return renames(from_folder, from, to_folder, to) ? real(from_folder, from, to_folder, to, flags) : -1;
}

#define LINK(name, types, values, folder)                                           \
    int name types {                                                                \
        REAL(name, int, LINK_TYPES_##name);                                         \
        char found[PATH_MAX];                                                       \
        if (!watched_path(folder, to, found)) return real values;                   \
        if (next(OPEN, found, 0) == FAIL) return -1;                                \
        int result = real values;                                                   \
        if (kind == POWER && !result) new_name(OPEN, found, found);                 \
        return result;                                                              \
    }
#define LINK_TYPES_link const char *, const char *
#define LINK_TYPES_symlink const char *, const char *
#define LINK_TYPES_linkat int, const char *, int, const char *, int
#define LINK_TYPES_symlinkat const char *, int, const char *
LINK(link, (const char *from, const char *to), (from, to), AT_FDCWD)
LINK(symlink, (const char *from, const char *to), (from, to), AT_FDCWD)
LINK(symlinkat, (const char *from, int folder, const char *to), (from, folder, to), folder)
LINK(linkat, (int from_folder, const char *from, int folder, const char *to, int flags),
     (from_folder, from, folder, to, flags), folder)

#define REMOVE(name, types, values, folder)                              \
    int name types {                                                     \
        REAL(name, int, REMOVE_TYPES_##name);                            \
        char found[PATH_MAX];                                            \
        if (!watched_path(folder, path, found)) return real values;      \
        return next(UNLINK, found, 0) == FAIL ? -1 : real values;        \
    }
#define REMOVE_TYPES_unlink const char *
#define REMOVE_TYPES_rmdir const char *
#define REMOVE_TYPES_remove const char *
#define REMOVE_TYPES_unlinkat int, const char *, int
REMOVE(unlink, (const char *path), (path), AT_FDCWD)
REMOVE(rmdir, (const char *path), (path), AT_FDCWD)
REMOVE(remove, (const char *path), (path), AT_FDCWD)
REMOVE(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder)

#define MAKE(name, types, values, folder)                                \
    int name types {                                                     \
        REAL(name, int, MAKE_TYPES_##name);                              \
        char found[PATH_MAX];                                            \
        if (!watched_path(folder, path, found)) return real values;      \
        if (next(MKDIR, found, 0) == FAIL) return -1;                    \
        int result = real values;                                        \
        if (kind == POWER && !result) new_name(MKDIR, found, found);     \
        return result;                                                   \
    }
#define MAKE_TYPES_mkdir const char *, mode_t
#define MAKE_TYPES_mkdirat int, const char *, mode_t
MAKE(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD)
MAKE(mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder)

#define CHANGE(name, types, values, folder)                              \
    int name types {                                                     \
        REAL(name, int, CHANGE_TYPES_##name);                            \
        char found[PATH_MAX];                                            \
        if (!watched_path(folder, path, found)) return real values;      \
        return next(MODE, found, 0) == FAIL ? -1 : real values;          \
    }
#define CHANGE_TYPES_chmod const char *, mode_t
#define CHANGE_TYPES_fchmodat int, const char *, mode_t, int
CHANGE(chmod, (const char *path, mode_t mode), (path, mode), AT_FDCWD)
CHANGE(fchmodat, (int folder, const char *path, mode_t mode, int flags), (folder, path, mode, flags), folder)
int fchmod(int handle, mode_t mode) {
    REAL(fchmod, int, int, mode_t);
    char found[PATH_MAX];
    if (!watched_handle(handle, found)) return real(handle, mode);
    return next(MODE, found, 0) == FAIL ? -1 : real(handle, mode);
}
