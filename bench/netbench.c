/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netbench: the traffic that ripstop's benchmarks need and stock tools do not have: request/response with exact
 * percentiles, connection rates, packet rates counted by the receiver, and open-loop load without coordinated omission.
 *
 *   netbench server     --port P [--bind ADDRESS] [--cpu N]
 *   netbench tcp-rr     --host H --port P [--connections N] [--size B] [--seconds S] [--warmup S] [--cpu N]
 *   netbench udp-rr     … [--timeout MS]
 *   netbench tcp-crr    … [--end fin|rst]     one connection per transaction, which the client closes, or resets
 *   netbench tcp-stream … [--sndbuf B]        Gbit/s as the receiver counts
 *   netbench udp-rate   … [--batch N] [--sndbuf B]
 *   netbench fixed-load … --rate R [--proto tcp|udp]
 *   netbench udp-flows  … --rate R [--first N]  each request is a flow of its own, from the N-th, N+1st, … source port
 *   netbench selftest
 *
 * Every command prints one JSON document on stdout; errors are one line on stderr. Exit code 0 done, 1 failed, 2 wrong
 * usage.
 *
 * The server has no commands. It answers, sinks and counts whatever comes, and each byte on a control connection is
 * answered with its current counters; clients subtract. So nothing has to be reset.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_CONNECTIONS = 256,
	MAX_TCP_SIZE = 16384, /* fits any receive window, so a blocking send of one request always ends */
	MAX_UDP_SIZE = 9216,  /* a jumbo frame */
	MAX_BATCH = 1024,
	LOWEST_PORT = 1024,
	PORTS = 65536 - LOWEST_PORT,
	STREAM_CHUNK = 128 << 10,
	SERVER_BATCH = 64,
	SERVER_RCVBUF = 8 << 20,
	CONTROL_TIMEOUT_S = 10,
	DRAIN_MS = 2000, /* how long replies are awaited after the last request */
};
#define MAGIC 0x6e627631u /* "nbv1" */
#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

#define say(...) (fprintf(stderr, "netbench: " __VA_ARGS__), fputc('\n', stderr))
#define die(...) (say(__VA_ARGS__), exit(1))
#define misuse(...) (say(__VA_ARGS__), exit(2))

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void *allocate(size_t count, size_t size)
{
	void *memory = calloc(count, size);

	if (!memory)
		die("out of memory");
	return memory;
}

/* ---- histogram ------------------------------------------------------------------------------------------------ */

/*
 * Log-linear buckets, as in HdrHistogram: 128 to an octave, so a bucket is at most 1/128 of its value wide and its
 * middle is within 0.4 % of every value in it. Nanoseconds up to 2^40 (18 minutes); larger values count as the largest.
 */
enum { SUB_BITS = 7, SUB = 1 << SUB_BITS, TOP_BIT = 40, BUCKETS = (TOP_BIT - SUB_BITS + 1) * SUB };

struct histogram {
	uint64_t count, sum, min, max;
	uint64_t bucket[BUCKETS];
};

static unsigned bucket_of(uint64_t value)
{
	if (value >= 1ull << TOP_BIT)
		value = (1ull << TOP_BIT) - 1;
	unsigned shift = value < 2 * SUB ? 0 : 63u - (unsigned)__builtin_clzll(value) - SUB_BITS;

	return shift * SUB + (unsigned)(value >> shift);
}

static uint64_t bucket_middle(unsigned bucket)
{
	if (bucket < 2 * SUB)
		return bucket;
	unsigned shift = bucket / SUB - 1;

	return ((uint64_t)(bucket % SUB + SUB) << shift) + (1ull << shift) / 2;
}

static void histogram_add(struct histogram *h, uint64_t value)
{
	if (h->count == 0 || value < h->min)
		h->min = value;
	if (value > h->max)
		h->max = value;
	h->count++;
	h->sum += value;
	h->bucket[bucket_of(value)]++;
}

/* The value at rank ceil(q * count), between the least and the largest value; 0 without values. */
static uint64_t histogram_quantile(const struct histogram *h, double q)
{
	double exact = q * (double)h->count;
	uint64_t rank = (uint64_t)exact, seen = 0;

	if ((double)rank < exact || rank == 0)
		rank++;
	for (unsigned i = 0; i < BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen < rank)
			continue;
		uint64_t value = bucket_middle(i);

		return value < h->min ? h->min : value > h->max ? h->max : value;
	}
	return 0;
}

/* ---- CPU time and counters of a side -------------------------------------------------------------------------- */

/*
 * Running totals; a measurement is the difference of two snapshots. On the wire: big-endian 64-bit words in this order.
 */
enum {
	NS,
	USER_US,
	SYS_US,
	SOFTIRQ_US, /* of the pinned CPU, else of all, from /proc/stat: ticks of 10 ms */
	BUSY_US,
	TOTAL_US,
	STREAM_BYTES,
	TCP_REQUESTS,
	ACCEPTED,
	UDP_REQUESTS,
	UDP_PACKETS,
	UDP_BYTES,
	UDP_DROPS, /* datagrams lost because the receiver's socket buffer was full */
	CPU,	   /* 1 + the pinned CPU, 0 = not pinned; no total */
	FIELDS
};
struct snapshot {
	uint64_t v[FIELDS];
};

static int pinned_cpu = -1;

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		die("cannot run on CPU %d: %s; choose one that is online", cpu, strerror(errno));
	pinned_cpu = cpu;
}

static void read_proc_stat(struct snapshot *s)
{
	char wanted[16], name[16], line[512];
	unsigned long long t[8];
	uint64_t us_per_tick = 1000000ull / (uint64_t)sysconf(_SC_CLK_TCK);
	FILE *file = fopen("/proc/stat", "re");

	if (!file)
		die("cannot read /proc/stat: %s", strerror(errno));
	if (pinned_cpu < 0)
		snprintf(wanted, sizeof(wanted), "cpu");
	else
		snprintf(wanted, sizeof(wanted), "cpu%d", pinned_cpu);
	while (fgets(line, sizeof(line), file)) {
		/* user nice system idle iowait irq softirq steal */
		if (sscanf(line, "%15s %llu %llu %llu %llu %llu %llu %llu %llu", name, &t[0], &t[1], &t[2], &t[3], &t[4], &t[5],
			   &t[6], &t[7]) != 9 ||
		    strcmp(name, wanted) != 0)
			continue;
		uint64_t total = 0;

		for (int i = 0; i < 8; i++)
			total += t[i];
		s->v[SOFTIRQ_US] = t[6] * us_per_tick;
		s->v[TOTAL_US] = total * us_per_tick;
		s->v[BUSY_US] = (total - t[3] - t[4]) * us_per_tick;
		break;
	}
	fclose(file);
}

static struct snapshot take_snapshot(void)
{
	struct snapshot s = {0};
	struct rusage usage;

	s.v[NS] = now_ns();
	getrusage(RUSAGE_SELF, &usage);
	s.v[USER_US] = (uint64_t)usage.ru_utime.tv_sec * 1000000ull + (uint64_t)usage.ru_utime.tv_usec;
	s.v[SYS_US] = (uint64_t)usage.ru_stime.tv_sec * 1000000ull + (uint64_t)usage.ru_stime.tv_usec;
	read_proc_stat(&s);
	s.v[CPU] = (uint64_t)(pinned_cpu + 1);
	return s;
}

static struct snapshot difference(const struct snapshot *from, const struct snapshot *to)
{
	struct snapshot d;

	for (int i = 0; i < FIELDS; i++)
		d.v[i] = to->v[i] - from->v[i];
	d.v[CPU] = to->v[CPU];
	return d;
}

static double seconds_of(uint64_t us)
{
	return (double)us / 1e6;
}

/* ---- sockets -------------------------------------------------------------------------------------------------- */

/* The first bytes of every TCP connection; of tcp-crr they are also the first bytes of the request. */
enum { CONTROL = 'C', ECHO = 'E', SINK = 'S' };
struct hello {
	uint32_t magic;
	uint8_t kind;
	uint8_t alone; /* the test's only connection: the server gives it a blocking thread, which answers fastest */
	uint16_t size; /* of a request and of its answer */
};

/* The first bytes of every datagram. A request is echoed; the others are counted. */
enum { REQUEST = 'Q', COUNTED = 'N' };
struct datagram {
	uint32_t magic;
	uint8_t kind;
	uint8_t zero[3];
	uint64_t seq;
};

static void set_option(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)) < 0)
		die("cannot set socket option %d/%d: %s", level, name, strerror(errno));
}

/* Root may exceed the limits of net.core; others get as much as these allow. */
static void set_buffer(int fd, int force, int polite, int bytes)
{
	if (setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof(bytes)) < 0)
		set_option(fd, SOL_SOCKET, polite, bytes);
}

static void set_timeout(int fd, int name, uint64_t ms)
{
	struct timeval t = {.tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000)};

	if (setsockopt(fd, SOL_SOCKET, name, &t, sizeof(t)) < 0)
		die("cannot set a socket timeout: %s", strerror(errno));
}

static bool send_all(int fd, const void *data, size_t size)
{
	for (const char *p = data; size > 0;) {
		ssize_t n = send(fd, p, size, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		size -= (size_t)n;
	}
	return true;
}

static bool receive_all(int fd, void *data, size_t size)
{
	for (char *p = data; size > 0;) {
		ssize_t n = recv(fd, p, size, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		size -= (size_t)n;
	}
	return true;
}

/* ---- server --------------------------------------------------------------------------------------------------- */

static _Atomic uint64_t counters[FIELDS];
static int udp_sockets[2] = {-1, -1};

static void count(int field, uint64_t n)
{
	atomic_fetch_add_explicit(&counters[field], n, memory_order_relaxed);
}

static struct snapshot server_snapshot(void)
{
	struct snapshot s = take_snapshot();

	for (int i = STREAM_BYTES; i < CPU; i++)
		s.v[i] = atomic_load_explicit(&counters[i], memory_order_relaxed);
	for (int i = 0; i < 2; i++) {
		uint32_t info[SK_MEMINFO_VARS];
		socklen_t length = sizeof(info);

		if (udp_sockets[i] >= 0 && getsockopt(udp_sockets[i], SOL_SOCKET, SO_MEMINFO, info, &length) == 0)
			s.v[UDP_DROPS] += info[SK_MEMINFO_DROPS];
	}
	return s;
}

static void start_thread(void *(*body)(void *), int fd)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, body, (void *)(intptr_t)fd) != 0)
		die("cannot start a thread");
	pthread_detach(thread);
}

static void *serve_control(void *argument)
{
	int fd = (int)(intptr_t)argument;
	char byte;

	while (receive_all(fd, &byte, 1)) {
		struct snapshot s = server_snapshot();

		for (int i = 0; i < FIELDS; i++)
			s.v[i] = htobe64(s.v[i]);
		if (!send_all(fd, &s, sizeof(s)))
			break;
	}
	close(fd);
	return NULL;
}

static void *serve_sink(void *argument)
{
	int fd = (int)(intptr_t)argument;
	char *buffer = allocate(2, STREAM_CHUNK);
	ssize_t n;

	while ((n = recv(fd, buffer, 2 * STREAM_CHUNK, 0)) > 0)
		count(STREAM_BYTES, (uint64_t)n);
	free(buffer);
	close(fd);
	return NULL;
}

/* A TCP socket of the server's epoll loop. `got` bytes of the current request are in; size 0 = no hello yet. */
struct conn {
	int fd;
	bool listening;
	uint32_t size, got;
};

static void watch_conn(int epoll, int fd, bool listening)
{
	struct conn *c = allocate(1, sizeof(*c));
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};

	c->fd = fd;
	c->listening = listening;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		die("epoll: %s", strerror(errno));
}

/* Read what is there and answer every request that is complete. False: the connection is over. */
static bool serve_requests(struct conn *c, int flags)
{
	static const char answer[4 * MAX_TCP_SIZE];
	char buffer[4 * MAX_TCP_SIZE];
	/* At most as many whole requests as `answer` can answer in one send. */
	ssize_t n = recv(c->fd, buffer, sizeof(buffer) / c->size * c->size - c->got, flags);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n == 0)
		return false;
	c->got += (uint32_t)n;
	uint32_t requests = c->got / c->size;

	c->got %= c->size;
	if (requests == 0)
		return true;
	count(TCP_REQUESTS, requests);
	return send_all(c->fd, answer, (size_t)requests * c->size);
}

static void *serve_alone(void *argument)
{
	int fd = (int)(intptr_t)argument;
	struct hello hello;
	struct conn c = {.fd = fd};

	if (receive_all(fd, &hello, sizeof(hello))) {
		c.size = ntohs(hello.size);
		while (serve_requests(&c, 0))
			;
	}
	close(fd);
	return NULL;
}

/*
 * The first readable event of a connection. True: it stays with the epoll loop; otherwise a thread has it, or it is
 * closed. The hello is only peeked at: of tcp-crr it is part of the request.
 */
static bool greet(int epoll, struct conn *c)
{
	struct hello hello;
	ssize_t n = recv(c->fd, &hello, sizeof(hello), MSG_PEEK | MSG_DONTWAIT);
	uint32_t size = ntohs(hello.size);
	void *(*body)(void *) = NULL;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (n > 0 && n < (ssize_t)sizeof(hello))
		return true; /* the rest is on its way */
	if (n <= 0 || ntohl(hello.magic) != MAGIC || size > MAX_TCP_SIZE)
		goto close;
	if (hello.kind == ECHO && size >= sizeof(hello) && !hello.alone) {
		c->size = size;
		return true;
	}
	if (hello.kind == ECHO && size > 0 && hello.alone)
		body = serve_alone;
	else if (hello.kind == CONTROL || hello.kind == SINK)
		body = hello.kind == CONTROL ? serve_control : serve_sink;
	else
		goto close;
	epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
	if (body != serve_alone)
		receive_all(c->fd, &hello, sizeof(hello));
	start_thread(body, c->fd);
	free(c);
	return false;
close:
	close(c->fd);
	free(c);
	return false;
}

static void *serve_udp(void *argument)
{
	int fd = (int)(intptr_t)argument;
	static _Thread_local struct mmsghdr in[SERVER_BATCH], out[SERVER_BATCH];
	static _Thread_local struct sockaddr_in6 from[SERVER_BATCH];
	struct iovec iov[SERVER_BATCH];
	char *buffers = allocate(SERVER_BATCH, MAX_UDP_SIZE);

	for (;;) {
		for (int i = 0; i < SERVER_BATCH; i++) {
			iov[i] = (struct iovec){buffers + (size_t)i * MAX_UDP_SIZE, MAX_UDP_SIZE};
			in[i].msg_hdr =
				(struct msghdr){.msg_name = &from[i], .msg_namelen = sizeof(from[i]), .msg_iov = &iov[i], .msg_iovlen = 1};
		}
		int n = recvmmsg(fd, in, SERVER_BATCH, MSG_WAITFORONE, NULL);
		uint64_t packets = 0, bytes = 0;
		unsigned requests = 0;

		for (int i = 0; i < n; i++) {
			struct datagram *d = iov[i].iov_base;

			if (in[i].msg_len < sizeof(*d) || ntohl(d->magic) != MAGIC)
				continue;
			if (d->kind == REQUEST) {
				iov[i].iov_len = in[i].msg_len;
				out[requests++] = in[i];
			} else {
				packets++;
				bytes += in[i].msg_len;
			}
		}
		if (packets) {
			count(UDP_PACKETS, packets);
			count(UDP_BYTES, bytes);
		}
		if (!requests)
			continue;
		count(UDP_REQUESTS, requests);
		for (unsigned sent = 0; sent < requests;) {
			int m = sendmmsg(fd, out + sent, requests - sent, 0);

			sent += m > 0 ? (unsigned)m : 1; /* an answer that cannot be sent is a loss that the client counts */
		}
	}
	return NULL;
}

/*
 * The default of almost every distribution. With another one (such as BBR) its pacing would be measured. Best effort: a
 * kernel without CUBIC keeps its own.
 */
static void use_cubic(int fd)
{
	setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", sizeof("cubic") - 1);
}

/* A bound socket, or −1 if the machine lacks the family. With *port 0 any port is used, and *port is set. */
static int bind_socket(const struct sockaddr *address, socklen_t length, int type, uint16_t *port)
{
	struct sockaddr_storage bound;
	int fd = socket(address->sa_family, type | SOCK_CLOEXEC, 0);

	if (fd < 0 && errno == EAFNOSUPPORT)
		return -1;
	if (fd < 0)
		die("cannot open a socket: %s", strerror(errno));
	if (address->sa_family == AF_INET6)
		set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	set_option(fd, SOL_SOCKET, SO_REUSEADDR, type & SOCK_STREAM ? 1 : 0);
	memcpy(&bound, address, length);
	/* sin_port and sin6_port lie at the same place. */
	((struct sockaddr_in *)&bound)->sin_port = htons(*port);
	if (bind(fd, (struct sockaddr *)&bound, length) < 0)
		die("cannot bind port %u: %s; is another netbench running there?", *port, strerror(errno));
	length = sizeof(bound);
	getsockname(fd, (struct sockaddr *)&bound, &length);
	*port = ntohs(((struct sockaddr_in *)&bound)->sin_port);
	return fd;
}

static void on_term(int signal)
{
	(void)signal;
	_exit(0);
}

struct options {
	struct sockaddr_storage address;
	socklen_t address_length;
	const char *host, *proto, *end;
	uint16_t port;
	int cpu, connections, batch, sndbuf;
	uint32_t size;
	uint64_t warmup_ns, run_ns, timeout_ms;
	double rate;
	uint64_t first;
};

static void run_server(const struct options *o)
{
	static const struct sockaddr_in any4 = {.sin_family = AF_INET};
	static const struct sockaddr_in6 any6 = {.sin6_family = AF_INET6};
	const struct sockaddr *addresses[2] = {(const struct sockaddr *)&any4, (const struct sockaddr *)&any6};
	socklen_t lengths[2] = {sizeof(any4), sizeof(any6)};
	int families = 2, epoll = epoll_create1(EPOLL_CLOEXEC);
	bool listening = false;
	uint16_t port = o->port;
	pid_t parent = getppid();
	struct sigaction term = {.sa_handler = on_term};

	sigaction(SIGTERM, &term, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		exit(0); /* the parent died before prctl() */
	if (o->host) {
		addresses[0] = (const struct sockaddr *)&o->address;
		lengths[0] = o->address_length;
		families = 1;
	}
	for (int i = 0; i < families; i++) {
		int listener = bind_socket(addresses[i], lengths[i], SOCK_STREAM | SOCK_NONBLOCK, &port);

		if (listener < 0)
			continue;
		if (listen(listener, 4096) < 0)
			die("cannot listen: %s", strerror(errno));
		watch_conn(epoll, listener, true);
		listening = true;
		udp_sockets[i] = bind_socket(addresses[i], lengths[i], SOCK_DGRAM, &port);
		set_buffer(udp_sockets[i], SO_RCVBUFFORCE, SO_RCVBUF, SERVER_RCVBUF);
		start_thread(serve_udp, udp_sockets[i]);
	}
	if (!listening)
		die("neither IPv4 nor IPv6 is to be had here");
	printf("{\"ready\":true,\"port\":%u}\n", port);
	fflush(stdout);

	for (;;) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;

			if (c->listening) {
				int fd = accept4(c->fd, NULL, NULL, SOCK_CLOEXEC);

				if (fd < 0)
					continue; /* it has been reset meanwhile */
				count(ACCEPTED, 1);
				set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
				use_cubic(fd);
				watch_conn(epoll, fd, false);
				continue;
			}
			if (c->size == 0 && (!greet(epoll, c) || c->size == 0))
				continue;
			if (!serve_requests(c, MSG_DONTWAIT)) {
				close(c->fd);
				free(c);
			}
		}
	}
}

/* ---- client: common parts --------------------------------------------------------------------------------------- */

/* The result of one phase of a test. Every request is counted as answered, lost, or late. */
struct result {
	struct histogram latency, lag;
	uint64_t sent, answered, lost, late, elapsed_ns;
};

struct peer {
	int fd;
	bool waiting, connecting;
	uint32_t got, unsent;
	uint64_t since, seq, answered;
};

static struct peer peers[MAX_CONNECTIONS];
static char request[MAX_TCP_SIZE];

static void on_alarm(int signal)
{
	static const char text[] = "netbench: no end in sight; the path or the server is gone\n";

	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(1);
}

static int open_socket(const struct options *o, int type)
{
	int fd = socket(o->address.ss_family, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("cannot open a socket: %s", strerror(errno));
	if (type & SOCK_STREAM) {
		set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		use_cubic(fd);
	}
	if (o->sndbuf)
		set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, o->sndbuf);
	return fd;
}

static int dial(const struct options *o, int type)
{
	int fd = open_socket(o, type);

	set_timeout(fd, SO_SNDTIMEO, CONTROL_TIMEOUT_S * 1000);
	if (connect(fd, (const struct sockaddr *)&o->address, o->address_length) < 0)
		die("cannot connect to %s port %u: %s", o->host, o->port, strerror(errno == EINPROGRESS ? ETIMEDOUT : errno));
	set_timeout(fd, SO_SNDTIMEO, 0);
	return fd;
}

static struct hello make_hello(uint8_t kind, bool alone, uint32_t size)
{
	return (struct hello){.magic = htonl(MAGIC), .kind = kind, .alone = alone, .size = htons((uint16_t)size)};
}

static int dial_tcp(const struct options *o, struct hello hello)
{
	int fd = dial(o, SOCK_STREAM);

	if (!send_all(fd, &hello, sizeof(hello)))
		die("cannot greet the server: %s", strerror(errno));
	return fd;
}

static int dial_control(const struct options *o)
{
	int fd = dial_tcp(o, make_hello(CONTROL, false, 0));

	set_timeout(fd, SO_RCVTIMEO, CONTROL_TIMEOUT_S * 1000);
	return fd;
}

static struct snapshot ask_server(int control)
{
	struct snapshot s;

	if (!send_all(control, "?", 1) || !receive_all(control, &s, sizeof(s)))
		die("the server does not answer on the control connection");
	for (int i = 0; i < FIELDS; i++)
		s.v[i] = be64toh(s.v[i]);
	return s;
}

static void prepare_datagram(void *buffer, uint8_t kind, uint64_t seq)
{
	struct datagram d = {.magic = htonl(MAGIC), .kind = kind, .seq = seq};

	memcpy(buffer, &d, sizeof(d));
}

static int watch(const struct options *o, uint32_t events)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	for (int i = 0; i < o->connections; i++) {
		struct epoll_event event = {.events = events, .data.u32 = (uint32_t)i};

		if (epoll_ctl(epoll, EPOLL_CTL_ADD, peers[i].fd, &event) < 0)
			die("epoll: %s", strerror(errno));
	}
	return epoll;
}

/* Both sides' totals around a phase. */
struct interval {
	struct snapshot client, server;
};

static void begin(struct interval *i, int control)
{
	i->server = ask_server(control);
	i->client = take_snapshot();
}

static void end(struct interval *i, int control)
{
	struct snapshot client = take_snapshot(), server = ask_server(control);

	i->client = difference(&i->client, &client);
	i->server = difference(&i->server, &server);
}

static void print_head(const struct options *o, const char *test)
{
	printf("{\"test\":\"%s\",\"host\":\"%s\",\"port\":%u,\"connections\":%d,\"size\":%u", test, o->host, o->port, o->connections,
	       o->size);
}

static void print_histogram(const char *name, const struct histogram *h)
{
	double mean = h->count ? (double)h->sum / (double)h->count / 1e3 : 0;

	printf(",\"%s\":{\"min\":%.3f,\"mean\":%.3f,\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}", name,
	       (double)h->min / 1e3, mean, (double)histogram_quantile(h, 0.5) / 1e3, (double)histogram_quantile(h, 0.9) / 1e3,
	       (double)histogram_quantile(h, 0.99) / 1e3, (double)histogram_quantile(h, 0.999) / 1e3, (double)h->max / 1e3);
}

static void print_side(const char *name, const struct snapshot *d)
{
	printf(",\"%s\":{\"cpu\":", name);
	if (d->v[CPU])
		printf("%llu", (unsigned long long)d->v[CPU] - 1);
	else
		printf("null");
	printf(",\"seconds\":%.6f,\"userSeconds\":%.6f,\"systemSeconds\":%.6f", (double)d->v[NS] / 1e9, seconds_of(d->v[USER_US]),
	       seconds_of(d->v[SYS_US]));
	printf(",\"machine\":{\"softirqSeconds\":%.2f,\"busySeconds\":%.2f,\"totalSeconds\":%.2f}", seconds_of(d->v[SOFTIRQ_US]),
	       seconds_of(d->v[BUSY_US]), seconds_of(d->v[TOTAL_US]));
}

/* The end of every document: both sides' costs, and what the server counted under `counted`. */
static void print_tail(const struct interval *i, const char *counted, uint64_t n)
{
	print_side("client", &i->client);
	printf("}");
	print_side("server", &i->server);
	printf(",\"%s\":%llu}}\n", counted, (unsigned long long)n);
}

static void print_transactions(const struct result *r)
{
	printf(",\"seconds\":%.6f,\"transactions\":%llu,\"rate\":%.1f,\"lost\":%llu,\"late\":%llu", (double)r->elapsed_ns / 1e9,
	       (unsigned long long)r->answered, (double)r->answered * 1e9 / (double)r->elapsed_ns, (unsigned long long)r->lost,
	       (unsigned long long)r->late);
	print_histogram("latencyUs", &r->latency);
}

/* ---- client: request/response ------------------------------------------------------------------------------------ */

static bool rr_is_udp;

static void rr_send(const struct options *o, struct peer *p, uint64_t now)
{
	p->since = now;
	p->got = 0;
	p->waiting = true;
	if (!rr_is_udp) {
		if (!send_all(p->fd, request, o->size))
			die("the connection broke: %s", strerror(errno));
		return;
	}
	prepare_datagram(request, REQUEST, ++p->seq);
	(void)!send(p->fd, request, o->size, 0); /* not sent = not answered = lost */
}

/* True when the answer to the pending request is complete. */
static bool rr_receive(const struct options *o, struct peer *p, int flags, struct result *r)
{
	char buffer[MAX_TCP_SIZE];

	for (;;) {
		ssize_t n = recv(p->fd, buffer, rr_is_udp ? sizeof(buffer) : o->size - p->got, flags);

		if (n < 0 && errno == EINTR)
			continue;
		if (rr_is_udp) {
			struct datagram d;

			if (n < (ssize_t)sizeof(d))
				return false; /* nothing in time, or an ICMP error: wait for the timeout */
			memcpy(&d, buffer, sizeof(d));
			if (p->waiting && d.seq == p->seq)
				return true;
			r->late++;
			continue;
		}
		if (n < 0 && errno == EAGAIN)
			return false;
		if (n <= 0)
			die("the server closed a connection: %s", n < 0 ? strerror(errno) : "end of stream");
		p->got += (uint32_t)n;
		if (p->got == o->size)
			return true;
	}
}

static void rr_done(struct peer *p, uint64_t now, struct result *r)
{
	histogram_add(&r->latency, now - p->since);
	r->answered++;
	p->waiting = false;
}

/* One connection: send, block, receive. */
static void rr_alone(const struct options *o, uint64_t duration, struct result *r)
{
	struct peer *p = &peers[0];
	uint64_t start = now_ns(), now = start;

	while (now < start + duration) {
		rr_send(o, p, now);
		r->sent++;
		bool answered = rr_receive(o, p, 0, r);

		now = now_ns();
		if (answered)
			rr_done(p, now, r);
		else if (now - p->since < o->timeout_ms * NS_PER_MS) {
			usleep(100); /* an ICMP error came at once: do not spin */
			now = now_ns();
		}
	}
	r->lost = r->sent - r->answered;
	r->elapsed_ns = now - start;
}

/* Many connections, one request pending on each. */
static void rr_many(const struct options *o, int epoll, uint64_t duration, struct result *r)
{
	uint64_t start = now_ns(), now = start, last = start, swept = start, timeout = o->timeout_ms * NS_PER_MS;
	int waiting = o->connections;

	for (int i = 0; i < o->connections; i++)
		rr_send(o, &peers[i], now_ns());
	r->sent = (uint64_t)o->connections;
	while (waiting > 0) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, 10);

		for (int i = 0; i < n; i++) {
			struct peer *p = &peers[events[i].data.u32];

			if (!rr_receive(o, p, MSG_DONTWAIT, r) || !p->waiting)
				continue;
			now = last = now_ns();
			rr_done(p, now, r);
			if (now < start + duration) {
				rr_send(o, p, now);
				r->sent++;
			} else
				waiting--;
		}
		now = now_ns();
		if (!rr_is_udp || now - swept < 10 * NS_PER_MS)
			continue;
		swept = now;
		for (int i = 0; i < o->connections; i++) {
			if (!peers[i].waiting || now - peers[i].since < timeout)
				continue;
			peers[i].waiting = false;
			if (now < start + duration) {
				rr_send(o, &peers[i], now);
				r->sent++;
			} else
				waiting--;
		}
	}
	r->lost = r->sent - r->answered;
	r->elapsed_ns = last > start + duration ? last - start : duration;
}

static void run_rr(const struct options *o, const char *name, bool udp)
{
	static struct result warm, r;
	struct interval i;
	int control = dial_control(o), epoll = -1;
	bool alone = o->connections == 1;

	rr_is_udp = udp;
	for (int c = 0; c < o->connections; c++) {
		if (udp)
			peers[c].fd = dial(o, SOCK_DGRAM);
		else if (alone)
			peers[c].fd = dial_tcp(o, make_hello(ECHO, true, o->size));
		else
			peers[c].fd = dial(o, SOCK_STREAM);
		if (udp && alone)
			set_timeout(peers[c].fd, SO_RCVTIMEO, o->timeout_ms);
	}
	if (!udp && !alone) {
		struct hello hello = make_hello(ECHO, false, o->size);

		memcpy(request, &hello, sizeof(hello));
	}
	if (!alone)
		epoll = watch(o, EPOLLIN);
	if (o->warmup_ns) {
		if (alone)
			rr_alone(o, o->warmup_ns, &warm);
		else
			rr_many(o, epoll, o->warmup_ns, &warm);
	}
	begin(&i, control);
	if (alone)
		rr_alone(o, o->run_ns, &r);
	else
		rr_many(o, epoll, o->run_ns, &r);
	end(&i, control);
	print_head(o, name);
	print_transactions(&r);
	print_tail(&i, "requests", i.server.v[udp ? UDP_REQUESTS : TCP_REQUESTS]);
}

/* ---- client: connect, request, response ------------------------------------------------------------------------- */

static void crr_open(const struct options *o, int epoll, struct peer *p)
{
	struct linger reset = {.l_onoff = 1, .l_linger = 0};
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = (uint32_t)(p - peers)};

	p->since = now_ns();
	p->got = 0;
	p->connecting = p->waiting = true;
	p->fd = open_socket(o, SOCK_STREAM | SOCK_NONBLOCK);
	if (!strcmp(o->end, "rst"))
		setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	if (connect(p->fd, (const struct sockaddr *)&o->address, o->address_length) < 0 && errno != EINPROGRESS)
		die("cannot connect to %s port %u: %s", o->host, o->port, strerror(errno));
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, p->fd, &event) < 0)
		die("epoll: %s", strerror(errno));
}

/* One step of a transaction: 1 done, 0 not yet, −1 the connection failed. */
static int crr_step(const struct options *o, struct peer *p)
{
	char buffer[MAX_TCP_SIZE];
	ssize_t n;

	if (p->connecting) {
		n = send(p->fd, request, o->size, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		p->connecting = false;
		/* A fresh connection's send buffer takes any request that the options allow. */
		if (n < (ssize_t)o->size)
			return -1;
	}
	while ((n = recv(p->fd, buffer, o->size - p->got, 0)) > 0) {
		p->got += (uint32_t)n;
		if (p->got == o->size)
			return 1;
	}
	return n < 0 && errno == EAGAIN ? 0 : -1;
}

static void crr_phase(const struct options *o, uint64_t duration, struct result *r)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), waiting = o->connections;
	uint64_t start = now_ns(), now = start, last = start;

	for (int i = 0; i < o->connections; i++)
		crr_open(o, epoll, &peers[i]);
	r->sent = (uint64_t)o->connections;
	while (waiting > 0 && now < start + duration + DRAIN_MS * NS_PER_MS) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, 10);

		now = now_ns();
		for (int i = 0; i < n; i++) {
			struct peer *p = &peers[events[i].data.u32];
			int step = crr_step(o, p);

			if (step == 0)
				continue;
			now = last = now_ns();
			if (step > 0)
				rr_done(p, now, r);
			close(p->fd);
			p->waiting = false;
			if (now < start + duration) {
				crr_open(o, epoll, p);
				r->sent++;
			} else
				waiting--;
		}
	}
	for (int i = 0; i < o->connections; i++) {
		if (peers[i].waiting)
			close(peers[i].fd);
		peers[i].waiting = false;
	}
	close(epoll);
	r->lost = r->sent - r->answered;
	r->elapsed_ns = last > start + duration ? last - start : duration;
}

static void run_crr(const struct options *o)
{
	static struct result warm, r;
	struct interval i;
	int control = dial_control(o);
	struct hello hello = make_hello(ECHO, false, o->size);

	memcpy(request, &hello, sizeof(hello));
	if (o->warmup_ns)
		crr_phase(o, o->warmup_ns, &warm);
	begin(&i, control);
	crr_phase(o, o->run_ns, &r);
	end(&i, control);
	print_head(o, "tcp-crr");
	print_transactions(&r);
	print_tail(&i, "accepted", i.server.v[ACCEPTED]);
}

/*
 * ---- client: streams ----------------------------------------------------------------------------------------------
 */

static struct {
	pthread_t thread;
	int fd;
	_Atomic uint64_t sent;
} streams[MAX_CONNECTIONS];
static atomic_bool streams_stop;

static void *stream_body(void *argument)
{
	int index = (int)(intptr_t)argument, fd = streams[index].fd;
	char *chunk = allocate(1, STREAM_CHUNK), byte;

	while (!atomic_load_explicit(&streams_stop, memory_order_relaxed)) {
		ssize_t n = send(fd, chunk, STREAM_CHUNK, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			die("a stream broke: %s", strerror(errno));
		if (n > 0)
			atomic_fetch_add_explicit(&streams[index].sent, (uint64_t)n, memory_order_relaxed);
	}
	/* The server closes when it has read the last byte. */
	shutdown(fd, SHUT_WR);
	(void)!recv(fd, &byte, 1, 0);
	close(fd);
	free(chunk);
	return NULL;
}

static uint64_t streams_sent(const struct options *o)
{
	uint64_t sent = 0;

	for (int i = 0; i < o->connections; i++)
		sent += atomic_load_explicit(&streams[i].sent, memory_order_relaxed);
	return sent;
}

static void sleep_ns(uint64_t ns)
{
	struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &t) == EINTR)
		;
}

static void run_stream(const struct options *o)
{
	struct interval i;
	int control = dial_control(o);
	struct snapshot first = ask_server(control), last;

	for (int c = 0; c < o->connections; c++)
		streams[c].fd = dial_tcp(o, make_hello(SINK, false, 0));
	for (int c = 0; c < o->connections; c++)
		if (pthread_create(&streams[c].thread, NULL, stream_body, (void *)(intptr_t)c) != 0)
			die("cannot start a thread");
	sleep_ns(o->warmup_ns);
	begin(&i, control);
	uint64_t before = streams_sent(o);

	sleep_ns(o->run_ns);
	uint64_t sent = streams_sent(o) - before;

	end(&i, control);
	atomic_store(&streams_stop, true);
	for (int c = 0; c < o->connections; c++)
		pthread_join(streams[c].thread, NULL);
	last = ask_server(control);
	uint64_t received = i.server.v[STREAM_BYTES];

	print_head(o, "tcp-stream");
	/* The receiver's bytes over the receiver's time. */
	printf(",\"seconds\":%.6f,\"gbitPerSecond\":%.6f,\"receivedBytes\":%llu,\"sentBytes\":%llu", (double)i.server.v[NS] / 1e9,
	       (double)received * 8 / (double)i.server.v[NS], (unsigned long long)received, (unsigned long long)sent);
	/* From the first byte of the warm-up to the very last byte: these two are equal. */
	printf(",\"totalReceivedBytes\":%llu,\"totalSentBytes\":%llu",
	       (unsigned long long)(last.v[STREAM_BYTES] - first.v[STREAM_BYTES]), (unsigned long long)streams_sent(o));
	print_tail(&i, "bytes", received);
}

/*
 * ---- client: packet rate ------------------------------------------------------------------------------------------
 */

struct blast {
	uint64_t sent, errors, elapsed_ns;
};

static struct blast blast(const struct options *o, int fd, uint64_t duration)
{
	static struct mmsghdr messages[MAX_BATCH];
	static struct iovec iov;
	struct blast b = {0};
	uint64_t start = now_ns(), now = start;

	prepare_datagram(request, COUNTED, 0);
	iov = (struct iovec){request, o->size};
	for (int i = 0; i < o->batch; i++)
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
	while (now < start + duration) {
		/* The clock is read once for about 32 packets. */
		for (int i = 0; i < 32; i += o->batch) {
			ssize_t n = o->batch == 1 ? send(fd, request, o->size, 0) : sendmmsg(fd, messages, (unsigned)o->batch, 0);

			if (n < 0)
				b.errors++;
			else
				b.sent += o->batch == 1 ? 1 : (uint64_t)n;
		}
		now = now_ns();
	}
	b.elapsed_ns = now - start;
	return b;
}

/* Wait until the receiver has counted everything that is still in queues, and return its totals. */
static struct snapshot settle(int control)
{
	struct snapshot before = ask_server(control), after;

	for (int quiet = 0, tries = 0; quiet < 3 && tries < 200; tries++, before = after) {
		sleep_ns(5 * NS_PER_MS);
		after = ask_server(control);
		quiet = after.v[UDP_PACKETS] == before.v[UDP_PACKETS] ? quiet + 1 : 0;
	}
	return before;
}

static void run_udp_rate(const struct options *o)
{
	struct interval i;
	int control = dial_control(o), fd = dial(o, SOCK_DGRAM);

	if (o->warmup_ns) {
		blast(o, fd, o->warmup_ns);
		settle(control);
	}
	begin(&i, control);
	struct snapshot first = i.server;
	struct blast b = blast(o, fd, o->run_ns);

	end(&i, control);
	struct snapshot settled = settle(control), all = difference(&first, &settled);
	uint64_t received = all.v[UDP_PACKETS];

	print_head(o, "udp-rate");
	printf(",\"batch\":%d,\"seconds\":%.6f,\"sentPps\":%.1f,\"receivedPps\":%.1f", o->batch, (double)b.elapsed_ns / 1e9,
	       (double)b.sent * 1e9 / (double)b.elapsed_ns, (double)i.server.v[UDP_PACKETS] * 1e9 / (double)i.server.v[NS]);
	printf(",\"sent\":%llu,\"received\":%llu,\"loss\":%.6f,\"socketDrops\":%llu,\"sendErrors\":%llu", (unsigned long long)b.sent,
	       (unsigned long long)received, b.sent ? 1 - (double)received / (double)b.sent : 0,
	       (unsigned long long)all.v[UDP_DROPS], (unsigned long long)b.errors);
	print_tail(&i, "packets", i.server.v[UDP_PACKETS]);
}

/*
 * ---- client: fixed load ---------------------------------------------------------------------------------------------
 */

/*
 * Open loop. Request k is due at start + k / rate and is sent then, whether earlier ones are answered or not; its
 * latency counts from when it was due. A client or a server that stalls is thus charged for every request that it
 * delays ("coordinated omission" is charging only for the first).
 */
struct load {
	uint64_t base, start, planned, last;
	double interval_ns;
	uint8_t *seen; /* one bit for each request: a duplicated datagram counts once */
};

static uint64_t due(const struct load *l, uint64_t k)
{
	return l->start + (uint64_t)((double)k * l->interval_ns);
}

/* Send the rest of an earlier request. True when nothing is left. */
static bool load_flush(struct peer *p)
{
	while (p->unsent > 0) {
		ssize_t n = send(p->fd, request, p->unsent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			return false;
		if (n <= 0)
			die("a connection broke: %s", strerror(errno));
		p->unsent -= (uint32_t)n;
	}
	return true;
}

static bool load_send(const struct options *o, struct load *l, uint64_t k)
{
	struct peer *p = &peers[k % (uint64_t)o->connections];

	if (!rr_is_udp) {
		if (!load_flush(p))
			return false;
		p->unsent = o->size;
		load_flush(p);
		if (p->unsent < o->size)
			return true;
		p->unsent = 0; /* none of it was sent: it will be sent again */
		return false;
	}
	prepare_datagram(request, REQUEST, l->base + k);
	return send(p->fd, request, o->size, MSG_DONTWAIT) >= 0 || errno != EAGAIN;
}

static void load_answered(struct load *l, uint64_t k, uint64_t now, struct result *r)
{
	if (k >= l->planned || l->seen[k / 8] & 1u << k % 8) {
		r->late++;
		return;
	}
	l->seen[k / 8] |= (uint8_t)(1u << k % 8);
	r->answered++;
	l->last = now;
	histogram_add(&r->latency, now - due(l, k));
}

static void load_receive(const struct options *o, struct load *l, struct peer *p, struct result *r)
{
	char buffer[4 * MAX_TCP_SIZE];

	for (;;) {
		ssize_t n = recv(p->fd, buffer, sizeof(buffer), MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || rr_is_udp))
			return;
		if (n <= 0 && !rr_is_udp)
			die("the server closed a connection: %s", n < 0 ? strerror(errno) : "end of stream");
		uint64_t now = now_ns();

		if (rr_is_udp) {
			struct datagram d;

			if (n < (ssize_t)sizeof(d))
				continue;
			memcpy(&d, buffer, sizeof(d));
			/* The number of an answer to the warm-up wraps to beyond `planned`: it is late. */
			load_answered(l, d.seq - l->base, now, r);
			continue;
		}
		/* TCP answers in order: the n-th answer on connection c is to request n * connections + c. */
		for (p->got += (uint32_t)n; p->got >= o->size; p->got -= o->size)
			load_answered(l, p->answered++ * (uint64_t)o->connections + (uint64_t)(p - peers), now, r);
		if (n < (ssize_t)sizeof(buffer))
			return;
	}
}

static void load_phase(const struct options *o, int epoll, uint64_t base, uint64_t duration, struct result *r)
{
	struct load l = {.base = base, .interval_ns = 1e9 / o->rate, .planned = (uint64_t)(o->rate * (double)duration / 1e9)};
	uint64_t next = 0, now, limit;

	l.seen = allocate(l.planned / 8 + 1, 1);
	l.start = now_ns() + NS_PER_MS;
	limit = l.start + duration + DRAIN_MS * NS_PER_MS;
	for (int i = 0; i < o->connections; i++)
		peers[i].answered = 0;
	while ((now = now_ns()) < limit && (next < l.planned || r->answered < l.planned)) {
		bool blocked = false;

		for (int i = 0; i < o->connections; i++)
			blocked |= !load_flush(&peers[i]);
		/* Catch up when late, but read in between. */
		for (int burst = 0; burst < 64 && next < l.planned && due(&l, next) <= now && !blocked; burst++) {
			blocked = !load_send(o, &l, next);
			if (!blocked)
				histogram_add(&r->lag, now_ns() - due(&l, next++));
		}
		now = now_ns();
		uint64_t wake = next == l.planned ? limit : due(&l, next);
		uint64_t wait = blocked ? 50000 : wake > now ? wake - now : 0;
		struct timespec timeout = {.tv_sec = (time_t)(wait / NS_PER_S), .tv_nsec = (long)(wait % NS_PER_S)};
		struct epoll_event events[64];
		int n = epoll_pwait2(epoll, events, 64, &timeout, NULL);

		for (int i = 0; i < n; i++)
			load_receive(o, &l, &peers[events[i].data.u32], r);
	}
	free(l.seen);
	r->sent = next;
	r->lost = l.planned - r->answered;
	r->elapsed_ns = l.last > l.start + duration ? l.last - l.start : duration;
}

static void run_fixed_load(const struct options *o)
{
	static struct result warm, r;
	struct interval i;
	int control = dial_control(o), epoll;

	rr_is_udp = strcmp(o->proto, "udp") == 0;
	prctl(PR_SET_TIMERSLACK, 1ul);
	for (int c = 0; c < o->connections; c++)
		peers[c].fd = rr_is_udp ? dial(o, SOCK_DGRAM) : dial_tcp(o, make_hello(ECHO, true, o->size));
	epoll = watch(o, EPOLLIN);
	if (o->warmup_ns) {
		load_phase(o, epoll, 0, o->warmup_ns, &warm);
		if (!rr_is_udp && warm.lost > 0)
			die("the server cannot keep up with %.0f requests/s: %llu unanswered after the warm-up", o->rate,
			    (unsigned long long)warm.lost);
	}
	begin(&i, control);
	load_phase(o, epoll, 1ull << 48, o->run_ns, &r);
	end(&i, control);
	print_head(o, "fixed-load");
	printf(",\"proto\":\"%s\",\"targetRate\":%.1f,\"sent\":%llu", o->proto, o->rate, (unsigned long long)r.sent);
	print_transactions(&r);
	print_histogram("sendLagUs", &r.lag);
	print_tail(&i, "requests", i.server.v[rr_is_udp ? UDP_REQUESTS : TCP_REQUESTS]);
}

/*
 * ---- client: new flows ----------------------------------------------------------------------------------------------
 */

/* A UDP socket with the next source port that is free, from `*k` on, which is counted up. */
static int open_flow(const struct options *o, uint64_t *k)
{
	for (unsigned tries = 0; tries < PORTS; tries++) {
		struct sockaddr_storage local = {.ss_family = o->address.ss_family};
		int fd = open_socket(o, SOCK_DGRAM);

		/* sin_port and sin6_port lie at the same place. */
		((struct sockaddr_in *)&local)->sin_port = htons((uint16_t)(LOWEST_PORT + (*k)++ % PORTS));
		if (bind(fd, (struct sockaddr *)&local, o->address_length) == 0) {
			if (connect(fd, (const struct sockaddr *)&o->address, o->address_length) < 0)
				die("cannot connect to %s port %u: %s", o->host, o->port, strerror(errno));
			return fd;
		}
		if (errno != EADDRINUSE)
			die("cannot bind a source port: %s", strerror(errno));
		close(fd);
	}
	die("no source port is free");
}

/* Count the answers of a flow, and end it. */
static void end_flow(struct peer *p, struct result *r)
{
	struct datagram d;

	if (p->fd <= 0)
		return;
	while (recv(p->fd, &d, sizeof(d), MSG_DONTWAIT) >= 0)
		r->answered++;
	close(p->fd);
	p->fd = 0;
}

/*
 * Open loop: a request is sent when it is due, from a source port of its own. A socket stays open until its place is
 * needed again, 256 requests later, so the answer finds it there.
 */
static void run_udp_flows(const struct options *o)
{
	static struct result r;
	struct interval i;
	int control = dial_control(o);
	uint64_t k = o->first;

	prctl(PR_SET_TIMERSLACK, 1ul);
	begin(&i, control);
	uint64_t start = now_ns(), now;

	while ((now = now_ns()) < start + o->warmup_ns + o->run_ns) {
		uint64_t next = start + (uint64_t)((double)r.sent * 1e9 / o->rate);
		struct peer *p = &peers[r.sent % MAX_CONNECTIONS];

		if (next > now) {
			sleep_ns(next - now);
			continue;
		}
		end_flow(p, &r);
		p->fd = open_flow(o, &k);
		prepare_datagram(request, REQUEST, r.sent++);
		/* A request that cannot be sent is one without an answer. */
		(void)!send(p->fd, request, o->size, MSG_DONTWAIT);
	}
	r.elapsed_ns = now - start;
	sleep_ns(o->timeout_ms * NS_PER_MS);
	for (int c = 0; c < MAX_CONNECTIONS; c++)
		end_flow(&peers[c], &r);
	end(&i, control);
	print_head(o, "udp-flows");
	printf(",\"seconds\":%.6f,\"flows\":%llu,\"answered\":%llu,\"rate\":%.1f", (double)r.elapsed_ns / 1e9,
	       (unsigned long long)r.sent, (unsigned long long)r.answered, (double)r.sent * 1e9 / (double)r.elapsed_ns);
	print_tail(&i, "requests", i.server.v[UDP_REQUESTS]);
}

/*
 * ---- selftest
 * ---------------------------------------------------------------------------------------------------------
 */

static uint64_t random_state = 0x9e3779b97f4a7c15ull;

static uint64_t random_u64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Every bucket ends where the next begins, and quantiles are within 1 % of those of the sorted values. */
static void run_selftest(void)
{
	enum { SAMPLES = 50000, SHAPES = 4 };
	static const double quantiles[] = {0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1};
	static struct histogram h;
	uint64_t *values = allocate(SAMPLES, sizeof(*values));
	double worst = 0;
	int checks = 0;

	for (uint64_t v = 0, last = 0; v < 1ull << 20; v++) {
		unsigned bucket = bucket_of(v);

		if (bucket != last && bucket != last + 1)
			die("bucket %u follows %llu at %llu", bucket, (unsigned long long)last, (unsigned long long)v);
		last = bucket;
	}
	for (int bit = 0; bit < 64; bit++) {
		for (int step = -1; step <= 1; step++) {
			uint64_t v = (1ull << bit) + (uint64_t)(int64_t)step, top = (1ull << TOP_BIT) - 1, known = v > top ? top : v;
			double middle = (double)bucket_middle(bucket_of(v)), error = middle / (double)(known ? known : 1) - 1;

			if (bucket_of(v) >= BUCKETS || (v != 0 && (error > 0.005 || error < -0.005)))
				die("%llu is counted as %.0f", (unsigned long long)v, middle);
			checks++;
		}
	}
	for (int shape = 0; shape < SHAPES; shape++) {
		memset(&h, 0, sizeof(h));
		for (int i = 0; i < SAMPLES; i++) {
			uint64_t x = random_u64();

			values[i] = shape == 0	 ? x % 200			     /* small and exact */
				    : shape == 1 ? 20000 + x % 5000		     /* a narrow band, as latencies are */
				    : shape == 2 ? x % 1000 ? 30000 : 5000000000ull  /* outliers of 5 s */
						 : 1ull << x % 38 | x >> 40;	     /* over all octaves */
			histogram_add(&h, values[i]);
		}
		qsort(values, SAMPLES, sizeof(*values), by_value);
		for (size_t q = 0; q < sizeof(quantiles) / sizeof(*quantiles); q++) {
			size_t rank = (size_t)(quantiles[q] * SAMPLES);
			double exact = (double)values[(double)rank < quantiles[q] * SAMPLES || rank == 0 ? rank : rank - 1];
			double got = (double)histogram_quantile(&h, quantiles[q]), error = exact > 0 ? got / exact - 1 : got;

			error = error < 0 ? -error : error;
			if (error > worst)
				worst = error;
			if (error > 0.01)
				die("shape %d: quantile %g is %.0f, not %.0f", shape, quantiles[q], got, exact);
			checks++;
		}
	}
	free(values);
	printf("{\"ok\":true,\"checks\":%d,\"worstError\":%.6f}\n", checks, worst);
}

/*
 * ---- the command line
 * ---------------------------------------------------------------------------------------------------
 */

static double number(const char *name, const char *text, double low, double high)
{
	char *rest;
	double value = strtod(text, &rest);

	if (rest == text || *rest || !(value >= low && value <= high))
		misuse("--%s takes a number from %g to %g, not '%s'", name, low, high, text);
	return value;
}

static void resolve(struct options *o)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST}, *found;

	if (!o->host)
		return;
	if (getaddrinfo(o->host, NULL, &hints, &found) != 0)
		misuse("'%s' is no IPv4 or IPv6 address", o->host);
	memcpy(&o->address, found->ai_addr, found->ai_addrlen);
	o->address_length = found->ai_addrlen;
	((struct sockaddr_in *)&o->address)->sin_port = htons(o->port);
	freeaddrinfo(found);
}

static struct options parse(int argc, char **argv, bool server)
{
	struct options o = {.proto = "udp", .end = "fin", .cpu = -1, .connections = 1, .batch = 32, .size = 64, .timeout_ms = 200};
	double seconds = 1, warmup = 0.2, port = -1;

	for (int i = 2; i < argc; i += 2) {
		const char *name = strncmp(argv[i], "--", 2) == 0 ? argv[i] + 2 : "", *value = argv[i + 1];

		if (!*name || !value)
			misuse("%s: options are '--name value'", argv[i]);
		if (!strcmp(name, "port"))
			port = number(name, value, server ? 0 : 1, 65535);
		else if (!strcmp(name, "cpu"))
			o.cpu = (int)number(name, value, 0, CPU_SETSIZE - 1);
		else if (!strcmp(name, server ? "bind" : "host"))
			o.host = value;
		else if (server)
			misuse("the server does not know --%s", name);
		else if (!strcmp(name, "connections"))
			o.connections = (int)number(name, value, 1, MAX_CONNECTIONS);
		else if (!strcmp(name, "size"))
			o.size = (uint32_t)number(name, value, 1, MAX_TCP_SIZE);
		else if (!strcmp(name, "seconds"))
			seconds = number(name, value, 0.01, 3600);
		else if (!strcmp(name, "warmup"))
			warmup = number(name, value, 0, 3600);
		else if (!strcmp(name, "timeout"))
			o.timeout_ms = (uint64_t)number(name, value, 1, 60000);
		else if (!strcmp(name, "batch"))
			o.batch = (int)number(name, value, 1, MAX_BATCH);
		else if (!strcmp(name, "sndbuf"))
			o.sndbuf = (int)number(name, value, 1024, 1 << 30);
		else if (!strcmp(name, "rate"))
			o.rate = number(name, value, 1, 1e7);
		else if (!strcmp(name, "first"))
			o.first = (uint64_t)number(name, value, 0, 1e15);
		else if (!strcmp(name, "proto") && (!strcmp(value, "tcp") || !strcmp(value, "udp")))
			o.proto = value;
		else if (!strcmp(name, "end") && (!strcmp(value, "fin") || !strcmp(value, "rst")))
			o.end = value;
		else
			misuse("unknown option --%s %s", name, value);
	}
	if (port < 0)
		misuse("--port is missing");
	if (!server && !o.host)
		misuse("--host is missing");
	o.port = (uint16_t)port;
	o.run_ns = (uint64_t)(seconds * 1e9);
	o.warmup_ns = (uint64_t)(warmup * 1e9);
	resolve(&o);
	return o;
}

static void limit_size(const struct options *o, bool udp, uint32_t least)
{
	if (o->size < least || o->size > (udp ? (uint32_t)MAX_UDP_SIZE : (uint32_t)MAX_TCP_SIZE))
		misuse("--size must be %u to %d here", least, udp ? MAX_UDP_SIZE : MAX_TCP_SIZE);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	bool server = !strcmp(command, "server");

	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(command, "selftest")) {
		run_selftest();
		return 0;
	}
	struct options o = parse(argc, argv, server);

	if (o.cpu >= 0)
		pin(o.cpu);
	if (server)
		run_server(&o); /* until SIGTERM */
	signal(SIGALRM, on_alarm);
	alarm((unsigned)((o.run_ns + o.warmup_ns) / NS_PER_S) + 2 * DRAIN_MS / 1000 + CONTROL_TIMEOUT_S);
	if (!strcmp(command, "tcp-rr") || !strcmp(command, "tcp-crr"))
		limit_size(&o, false, o.connections > 1 || command[4] == 'c' ? sizeof(struct hello) : 1);
	else if (!strcmp(command, "udp-rr") || !strcmp(command, "udp-rate") || !strcmp(command, "udp-flows") ||
		 !strcmp(command, "fixed-load"))
		limit_size(&o, !(command[0] == 'f' && !strcmp(o.proto, "tcp")), command[0] == 'f' && !strcmp(o.proto, "tcp") ? 1 : 16);
	if (!strcmp(command, "tcp-rr"))
		run_rr(&o, command, false);
	else if (!strcmp(command, "udp-rr"))
		run_rr(&o, command, true);
	else if (!strcmp(command, "tcp-crr"))
		run_crr(&o);
	else if (!strcmp(command, "tcp-stream"))
		run_stream(&o);
	else if (!strcmp(command, "udp-rate"))
		run_udp_rate(&o);
	else if (!strcmp(command, "fixed-load") && o.rate > 0)
		run_fixed_load(&o);
	else if (!strcmp(command, "udp-flows") && o.rate > 0)
		run_udp_flows(&o);
	else if (!strcmp(command, "fixed-load") || !strcmp(command, "udp-flows"))
		misuse("--rate is missing");
	else
		misuse("unknown command '%s': server, tcp-rr, udp-rr, tcp-crr, tcp-stream, udp-rate, udp-flows, fixed-load or selftest",
		       command);
	return 0;
}
