/* The CNI executable: hands CNI_* and stdin to the agent's socket and prints the answer.
 *
 * Static and small: it is on the path of every pod start, and the host may lack everything else. It
 * answers VERSION by itself, and error 11 at once (runtimes try again) when the agent is not there.
 * The frames are described in cni/server.py; cni/shim.py is the same program in Python. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define ENV_MAX (64 << 10)
#define STDIN_MAX (4 << 20)
#define ANSWER_S 60 /* longer than any ADD, shorter than a kubelet's patience */

/* `podwire cni install --socket` writes another path after the '='; not static, or it is folded. */
char socket_path[19 + 108] = "PODWIRE_CNI_SOCKET=/run/podwire/cni.sock";
static struct { char magic[4]; uint32_t env, in; int32_t netns_errno; } head = {"PWC1", 0, 0, 0};
static struct { uint32_t status, size; } answer;
static char frame[sizeof head + ENV_MAX + STDIN_MAX + 2], out[STDIN_MAX]; /* unused, they cost nothing */
static char version[16] = "1.1.0";
extern char **environ;

static int fail(int code, const char *what, const char *path, const char *why) {
    char clean[128] = "";
    for (size_t i = 0; path[i] && i < sizeof clean - 1; i++)
        clean[i] = (path[i] < ' ' || path[i] > '~' || path[i] == '"' || path[i] == '\\') ? '?' : path[i];
    printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s %s: %s\"}", version, code, what, clean, why);
    return 1;
}

/* The first "cniVersion" of the configuration, to answer in; no JSON parser is worth its weight here. */
static void find_version(const char *in) {
    const char *at = strstr(in, "\"cniVersion\"");
    char found[16], quote = 0;
    if (!at || sscanf(at + 12, " : \"%15[0-9.]%c", found, &quote) != 2 || quote != '"') return;
    if (!strcmp(found, "0.3.1") || !strcmp(found, "0.4.0") || !strcmp(found, "1.0.0")) strcpy(version, found);
}

int main(void) {
    char *env = frame + sizeof head, *in = env, *path = getenv("PODWIRE_CNI_SOCKET");
    char *command = getenv("CNI_COMMAND"), *netns = getenv("CNI_NETNS");
    ssize_t n;
    if (!path || !*path) path = strchr(socket_path, '=') + 1;
    for (char **var = environ; *var; var++) {
        size_t size = strlen(*var) + 1;
        if (strncmp(*var, "CNI_", 4)) continue;
        if (in - env + size > ENV_MAX) return fail(4, "environment of", "CNI_*", "is larger than 64 KiB");
        in = mempcpy(in, *var, size);
    }
    head.env = in - env;
    while ((n = read(0, in + head.in, STDIN_MAX + 1 - head.in)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(5, "read", "stdin", strerror(errno));
        if ((head.in += n) > STDIN_MAX) return fail(6, "configuration on", "stdin", "is larger than 4 MiB");
    }
    find_version(in);
    if (command && !strcmp(command, "VERSION")) {
        printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}", version);
        return 0;
    }
    int fd = netns && *netns ? open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    head.netns_errno = netns && *netns && fd < 0 ? errno : 0;
    memcpy(frame, &head, sizeof head);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = ANSWER_S};
    if (strlen(path) >= sizeof addr.sun_path) return fail(11, "podwire agent at", path, "path is too long");
    strcpy(addr.sun_path, path);
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof addr))
        return fail(11, "podwire agent at", path, strerror(errno));
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    size_t size = sizeof head + head.env + head.in;
    union { struct cmsghdr align; char buf[CMSG_SPACE(sizeof fd)]; } control = {0};
    for (size_t sent = 0; sent < size; sent += n) {
        struct iovec iov = {frame + sent, size - sent};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        if (sent == 0 && fd >= 0) {
            msg.msg_control = control.buf, msg.msg_controllen = sizeof control.buf;
            struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
            c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
            memcpy(CMSG_DATA(c), &fd, sizeof fd);
        }
        n = sendmsg(sock, &msg, MSG_NOSIGNAL);
        if (n < 0) return fail(11, "podwire agent at", path, strerror(errno));
    }
    if (recv(sock, &answer, sizeof answer, MSG_WAITALL) != sizeof answer || answer.size > sizeof out ||
        recv(sock, out, answer.size, MSG_WAITALL) != (ssize_t)answer.size)
        return fail(11, "podwire agent at", path, "went away without an answer");
    return fwrite(out, 1, answer.size, stdout) == answer.size && !fflush(stdout) ? (int)answer.status : 5;
}
