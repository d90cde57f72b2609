/* Real traffic between two kernels, by tools that are not the limit: TCP by sendfile, UDP by sendmmsg.
 *
 *     traffic sink PORT                            take TCP connections; of each, count the octets until it ends
 *     traffic stream ADDRESS PORT SECONDS          one TCP connection, as fast as it goes
 *     traffic count PORT SECONDS                   count UDP packets
 *     traffic flood ADDRESS PORT SIZE SECONDS      UDP packets with SIZE octets of data, as fast as it goes
 *     traffic echo PORT                            send UDP packets back
 *     traffic bounce ADDRESS PORT SIZE SECONDS     one UDP packet on the way at any time; a lost one costs 0.2 s
 *
 * `sink`, `count` and `echo` say "ready" first; `sink` and `echo` run until they are killed.  What was counted
 * is said as one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, LARGEST = 65536, CHUNK = 4 << 20, BUFFER = 8 << 20, SAMPLES = 4 << 20 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static struct sockaddr_in6 address(const char *text, const char *port)
{
    struct sockaddr_in6 there = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port))};
    if (inet_pton(AF_INET6, text, &there.sin6_addr) != 1) {
        fprintf(stderr, "not an address: %s\n", text);
        exit(2);
    }
    return there;
}

static int listening(int type, const char *port)
{
    struct sockaddr_in6 here = address("::", port);
    int sock = socket(AF_INET6, type, 0), yes = 1, size = BUFFER;
    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (type == SOCK_DGRAM && setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
        setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(sock, (struct sockaddr *)&here, sizeof here))
        die("bind");
    if (type == SOCK_STREAM && listen(sock, 4))
        die("listen");
    puts("ready");
    fflush(stdout);
    return sock;
}

static int connected(int type, const char *text, const char *port)
{
    struct sockaddr_in6 there = address(text, port);
    int sock = socket(AF_INET6, type, 0);
    if (connect(sock, (struct sockaddr *)&there, sizeof there))
        die("connect");
    return sock;
}

static void patience(int sock, double seconds)
{
    struct timeval time = {.tv_sec = (long)seconds, .tv_usec = (seconds - (long)seconds) * 1e6};
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
}

static void sink(const char *port)
{
    int server = listening(SOCK_STREAM, port);
    for (;;) {
        int sock = accept(server, NULL, NULL);
        if (sock < 0)
            die("accept");
        uint64_t octets = 0;
        double started = now();
        ssize_t got;
        while ((got = recv(sock, NULL, CHUNK, MSG_TRUNC)) > 0) /* TCP counts and throws away */
            octets += got;
        printf("{\"octets\": %llu, \"seconds\": %.6f, \"error\": %d}\n", (unsigned long long)octets,
               now() - started, got < 0 ? errno : 0);
        fflush(stdout);
        close(sock);
    }
}

static void stream(const char *text, const char *port, double seconds)
{
    int sock = connected(SOCK_STREAM, text, port);
    int file = memfd_create("stream", 0);
    if (file < 0 || ftruncate(file, CHUNK))
        die("memfd");
    double started = now(), end = started + seconds;
    uint64_t octets = 0;
    while (now() < end) {
        off_t from = 0;
        ssize_t sent = sendfile(sock, file, &from, CHUNK);
        if (sent < 0)
            die("sendfile");
        octets += sent;
    }
    struct tcp_info info;
    socklen_t size = sizeof info;
    getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &size);
    shutdown(sock, SHUT_WR);
    char rest;
    patience(sock, 10);
    if (read(sock, &rest, 1) < 0) /* until the sink has taken it all */
        die("read");
    printf("{\"octets\": %llu, \"seconds\": %.6f, \"retransmitted\": %u}\n", (unsigned long long)octets,
           now() - started, info.tcpi_total_retrans);
}

static void count(const char *port, double seconds)
{
    static char data[BATCH][LARGEST];
    struct mmsghdr messages[BATCH] = {0};
    struct iovec parts[BATCH];
    int sock = listening(SOCK_DGRAM, port);
    uint64_t packets = 0, octets = 0;
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], LARGEST};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    patience(sock, 0.1);
    double end = now() + seconds, first = 0, last = 0;
    while (now() < end) {
        int got = recvmmsg(sock, messages, BATCH, MSG_WAITFORONE, NULL);
        if (got <= 0)
            continue;
        last = now();
        if (!packets)
            first = last;
        packets += got;
        for (int i = 0; i < got; i++)
            octets += messages[i].msg_len;
    }
    printf("{\"packets\": %llu, \"octets\": %llu, \"seconds\": %.6f}\n", (unsigned long long)packets,
           (unsigned long long)octets, last - first);
}

static void flood(const char *text, const char *port, size_t length, double seconds)
{
    static char data[LARGEST];
    struct mmsghdr messages[BATCH] = {0};
    struct iovec part = {data, length};
    int sock = connected(SOCK_DGRAM, text, port);
    uint64_t packets = 0;
    for (int i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_iov = &part;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    double started = now(), end = started + seconds;
    while (now() < end) {
        int sent = sendmmsg(sock, messages, BATCH, 0);
        if (sent > 0)
            packets += sent;
        else if (errno != ECONNREFUSED && errno != ENOBUFS && errno != EAGAIN)
            die("sendmmsg");
    }
    printf("{\"packets\": %llu, \"seconds\": %.6f}\n", (unsigned long long)packets, now() - started);
}

static void echo(const char *port)
{
    static char data[LARGEST];
    int sock = listening(SOCK_DGRAM, port);
    for (;;) {
        struct sockaddr_in6 from;
        socklen_t size = sizeof from;
        ssize_t got = recvfrom(sock, data, sizeof data, 0, (struct sockaddr *)&from, &size);
        if (got >= 0)
            sendto(sock, data, got, 0, (struct sockaddr *)&from, size);
    }
}

static int ascending(const void *one, const void *other)
{
    float difference = *(const float *)one - *(const float *)other;
    return (difference > 0) - (difference < 0);
}

static void bounce(const char *text, const char *port, size_t length, double seconds)
{
    static char data[LARGEST];
    static float samples[SAMPLES];
    int sock = connected(SOCK_DGRAM, text, port);
    size_t answered = 0, lost = 0;
    patience(sock, 0.2);
    double end = now() + seconds;
    while (now() < end && answered < SAMPLES) {
        double sent = now();
        send(sock, data, length, 0);
        if (recv(sock, data, sizeof data, 0) < 0)
            lost++;
        else
            samples[answered++] = (now() - sent) * 1e6;
    }
    qsort(samples, answered, sizeof *samples, ascending);
    printf("{\"answered\": %zu, \"lost\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", answered, lost,
           answered ? samples[answered / 2] : 0, answered ? samples[answered * 99 / 100] : 0);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "sink") && argc == 3)
        sink(argv[2]);
    else if (!strcmp(what, "stream") && argc == 5)
        stream(argv[2], argv[3], atof(argv[4]));
    else if (!strcmp(what, "count") && argc == 4)
        count(argv[2], atof(argv[3]));
    else if (!strcmp(what, "flood") && argc == 6)
        flood(argv[2], argv[3], atoi(argv[4]), atof(argv[5]));
    else if (!strcmp(what, "echo") && argc == 3)
        echo(argv[2]);
    else if (!strcmp(what, "bounce") && argc == 6)
        bounce(argv[2], argv[3], atoi(argv[4]), atof(argv[5]));
    else {
        fprintf(stderr, "see the head of traffic.c for what it takes\n");
        return 2;
    }
    return 0;
}
