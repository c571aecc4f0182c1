// SPDX-License-Identifier: Apache-2.0
/*
 * ripstop-cni: the CNI plugin that the container runtime executes on the host.
 *
 * It decides nothing. It sends its CNI_* environment and its standard input to the ripstop agent over a unix socket,
 * and prints the agent's answer; src/cni/protocol.ts describes the protocol. It is written in C and linked statically
 * because hosts have no Node, and because a runtime starts it several times for every pod.
 *
 * Without an agent it answers by itself:
 *
 *   VERSION  the versions (also with an agent).
 *   DEL      success, since it must always be possible to delete pods. The request is stored in a directory, and the
 *            agent carries it out when it runs again (src/cni/deferred.ts). Until then the address stays leased, so
 *            that no other pod gets it: the pinned programs still know it. The pod's veth pair goes with its
 *            namespace, which the runtime removes. If the container has no lease, as after an ADD that found no
 *            agent, there is nothing to remove, and nothing is stored. So there are never more requests than leases.
 *   GC       success, without doing anything. The request is not stored: carried out later, it would remove pods that
 *            were added since. The runtime's next GC does the work.
 *   others   an error which says that the agent does not answer: code 11 "try again later"; for STATUS, code 50
 *            "not available".
 *
 * STATUS waits a while for an agent that is away or not ready, as after its restart. A runtime hands the error on, the
 * kubelet calls the node not ready, and the cluster takes the node's pods out of their Services, although the pinned
 * programs serve them as before. The kubelet itself waits half a minute for its runtime.
 *
 * It has three static buffers of the largest size that the protocol allows; only the filled part of them uses memory.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The paths in the manifest. Labs and tests override them with RIPSTOP_CNI_* variables. */
#define DEFAULT_SOCKET "/run/ripstop/cni.sock"
#define DEFAULT_DEFERRED "/var/lib/ripstop/deferred"
#define DEFAULT_LEASES "/var/lib/cni/networks"
#define SUPPORTED_VERSIONS "[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]"
#define DEFAULT_VERSION "1.0.0"
#define MAGIC "RSC1"
#define FIELD_LIMIT (1024 * 1024)

/* The time from start to answer. Runtimes wait longer (containerd and kubelet: minutes); tests build with less. */
#ifndef DEADLINE_MS
#define DEADLINE_MS 60000
#endif

/* How long STATUS waits for an agent that is ready, and how often it asks. Labs override it with
 * RIPSTOP_CNI_PATIENCE_MS. */
#define DEFAULT_PATIENCE_MS "15000"
#define ASK_EVERY_MS 200

/* Codes of the CNI specification, "Well-known error codes". */
enum cni_code {
	CNI_ENVIRONMENT = 4,
	CNI_IO = 5,
	CNI_DECODE = 6,
	CNI_TRY_AGAIN = 11,
	CNI_NOT_AVAILABLE = 50,
};

static uint8_t input[FIELD_LIMIT]; /* standard input */
static size_t input_length;
static uint8_t environment[FIELD_LIMIT]; /* KEY=VALUE\0 of every CNI_* variable */
static size_t environment_length;
static uint8_t answer[FIELD_LIMIT]; /* the agent's output */
static const char *command;
static const char *socket_path;
static char cni_version[16] = DEFAULT_VERSION;
static int64_t deadline_ms;

/* Print text inside a JSON string. Bytes beyond ASCII, which a path may contain, become U+FFFD, so that the output is
 * valid UTF-8 in any case. */
static void print_json_text(const char *text)
{
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		if (*c == '"' || *c == '\\')
			printf("\\%c", *c);
		else if (*c < 0x20 || *c == 0x7f)
			printf("\\u%04x", *c);
		else if (*c > 0x7f)
			printf("\\ufffd");
		else
			putchar(*c);
	}
}

__attribute__((noreturn, format(printf, 2, 3))) static void fail(enum cni_code code, const char *format, ...)
{
	char message[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof message, format, args);
	va_end(args);
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", cni_version, (int)code);
	print_json_text(message);
	printf("\"}\n");
	exit(1);
}

static bool is_command(const char *name)
{
	return command && strcmp(command, name) == 0;
}

/* The value of a variable, or `otherwise` if it is not set. */
static const char *variable_or(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value && *value ? value : otherwise;
}

/* A variable that becomes part of a file name. The agent's rules (src/cni/spec.ts) are stricter. */
static const char *name_variable(const char *variable, size_t longest)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@-";
	const char *value = variable_or(variable, "");

	if (!*value || *value == '.' || strlen(value) > longest || value[strspn(value, alphabet)])
		fail(CNI_ENVIRONMENT, "%s \"%.80s\" is missing, or is no name", variable, value);
	return value;
}

/* Whether a file of host-local is a lease of the container: "ID\r\nIFNAME", or just "ID" in old ones. */
static bool is_lease_of(int directory, const char *file, const char *container)
{
	size_t size = strlen(container);
	char text[256] = "";
	ssize_t got;
	int fd = openat(directory, file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	/* A file that cannot be read may be one: better store a DEL in vain than lose it. */
	if (fd < 0)
		return errno != ENOENT;
	got = read(fd, text, sizeof text - 1);
	close(fd);
	return got >= (ssize_t)size && memcmp(text, container, size) == 0 && strchr("\r\n", text[size]);
}

static bool has_lease_in(int networks, const char *network, const char *container)
{
	int fd = openat(networks, network, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	bool found = false;

	if (!directory)
		return errno != ENOENT && errno != ENOTDIR;
	for (struct dirent *file; !found && (file = readdir(directory));)
		found = file->d_name[0] != '.' && is_lease_of(fd, file->d_name, container);
	closedir(directory);
	return found;
}

/* Whether host-local has a lease for the container, in any network. ADD takes the lease before it does anything else,
 * and DEL releases it last. */
static bool has_lease(const char *container)
{
	DIR *networks = opendir(variable_or("RIPSTOP_CNI_LEASES", DEFAULT_LEASES));
	bool found = false;

	if (!networks)
		return errno != ENOENT;
	for (struct dirent *network; !found && (network = readdir(networks));)
		found = network->d_name[0] != '.' && has_lease_in(dirfd(networks), network->d_name, container);
	closedir(networks);
	return found;
}

/* @return whether all of it was written; errno says why not. */
static bool write_all(int fd, const void *bytes, size_t length)
{
	const uint8_t *next = bytes;

	while (length > 0) {
		ssize_t written = write(fd, next, length);

		if (written < 0 && errno != EINTR)
			return false;
		if (written > 0) {
			next += written;
			length -= (size_t)written;
		}
	}
	return true;
}

static void put_be32(uint8_t *bytes, size_t value)
{
	for (int i = 0; i < 4; i++)
		bytes[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* Write the request in the same format as on the socket. @return whether it is on the disk; errno says why not. */
static bool write_request(int fd)
{
	uint8_t environment_size[4], input_size[4];

	put_be32(environment_size, environment_length);
	put_be32(input_size, input_length);
	return write_all(fd, MAGIC, 4) && write_all(fd, environment_size, 4) &&
	       write_all(fd, environment, environment_length) && write_all(fd, input_size, 4) &&
	       write_all(fd, input, input_length) && fsync(fd) == 0;
}

/* Create a directory for root only, and its parent. @return its descriptor; -1 when that failed, errno says why. */
static int open_directory(const char *path)
{
	char parent[PATH_MAX];
	char *slash;
	int fd, error;

	snprintf(parent, sizeof parent, "%s", path);
	slash = strrchr(parent, '/');
	if (slash && slash != parent) {
		*slash = '\0';
		mkdir(parent, 0755);
	}
	error = mkdir(path, 0700) < 0 && errno != EEXIST ? errno : 0;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 && error)
		errno = error;
	return fd;
}

/* Store the request atomically and durably, in one file for each attachment: the same DEL again takes no more space.
 * @return whether it is stored; errno says why not. */
static bool keep_request(const char *path, const char *container, const char *ifname)
{
	char name[256], draft[256];
	bool kept;
	int directory = open_directory(path), fd, error;

	if (directory < 0)
		return false;
	/* Neither name has a colon. */
	snprintf(name, sizeof name, "%s:%s", container, ifname);
	snprintf(draft, sizeof draft, ".%s.%ld", name, (long)getpid());
	fd = openat(directory, draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	kept = fd >= 0 && write_request(fd) && renameat(directory, draft, directory, name) == 0 && fsync(directory) == 0;
	error = errno;
	if (!kept)
		unlinkat(directory, draft, 0);
	errno = error;
	return kept;
}

/* Returns when the request is stored, or when there is nothing to remove. */
static void defer_del(const char *why)
{
	const char *container = name_variable("CNI_CONTAINERID", 200), *ifname = name_variable("CNI_IFNAME", 15);
	const char *path = variable_or("RIPSTOP_CNI_DEFERRED", DEFAULT_DEFERRED);

	if (!has_lease(container))
		return;
	if (!keep_request(path, container, ifname))
		fail(CNI_TRY_AGAIN,
		     "the ripstop agent gave no answer at %s: %s; and the DEL cannot be kept for it in %s: %s; "
		     "start the agent, or see why nothing can be written there",
		     socket_path, why, path, strerror(errno));
	fprintf(stderr, "ripstop-cni: the ripstop agent gave no answer at %s: %s; the DEL of %s is kept for it in %s\n",
		socket_path, why, container, path);
}

__attribute__((noreturn)) static void agent_away(const char *why)
{
	if (is_command("DEL")) {
		defer_del(why);
		exit(0);
	}
	if (is_command("GC")) {
		fprintf(stderr, "ripstop-cni: the ripstop agent gave no answer at %s: %s; the next GC will do\n", socket_path,
			why);
		exit(0);
	}
	fail(is_command("STATUS") ? CNI_NOT_AVAILABLE : CNI_TRY_AGAIN,
	     "the ripstop agent gave no answer at %s: %s; see that the agent runs on this node and what its log says",
	     socket_path, why);
}

/* For errors of send and receive that are final. */
__attribute__((noreturn)) static void connection_lost(int error)
{
	bool ended = error == 0 || error == EPIPE || error == ECONNRESET;

	agent_away(ended ? "it ended the connection before it had answered" : strerror(error));
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether the file became ready before the deadline. Errors count as ready: the next read or write reports them. */
static bool wait_ready(int fd, short events)
{
	for (;;) {
		struct pollfd poller = {.fd = fd, .events = events};
		int64_t left = deadline_ms - now_ms();
		int ready = left > 0 ? poll(&poller, 1, (int)left) : 0;

		if (ready < 0 && errno == EINTR)
			continue;
		return ready != 0;
	}
}

/* Everything up to the end of standard input. */
static size_t read_input(void)
{
	size_t length = 0;

	for (;;) {
		uint8_t beyond;
		bool full = length == sizeof input;
		ssize_t got;

		if (!wait_ready(STDIN_FILENO, POLLIN))
			fail(CNI_IO, "standard input did not end in time; the runtime must close it after the network configuration");
		got = full ? read(STDIN_FILENO, &beyond, 1) : read(STDIN_FILENO, input + length, sizeof input - length);
		if (got == 0)
			return length;
		if (got < 0 && errno != EINTR)
			fail(CNI_IO, "cannot read the network configuration from standard input: %s", strerror(errno));
		if (got > 0 && full)
			fail(CNI_DECODE, "the network configuration on standard input is longer than %d bytes", FIELD_LIMIT);
		if (got > 0)
			length += (size_t)got;
	}
}

/*
 * Copy the value of the top level's "cniVersion" into cni_version, if it consists of digits and dots. This is not a
 * JSON parser: it follows only strings and nesting. That suffices not to take the version of a prevResult, or text
 * inside a string, for the version of the configuration.
 */
static void scan_version(const uint8_t *json, size_t length)
{
	static const char name[] = "cniVersion";
	enum { ELSEWHERE, AFTER_NAME, AFTER_COLON } state = ELSEWHERE;
	size_t depth = 0;

	for (size_t i = 0; i < length; i++) {
		uint8_t c = json[i];

		if (c == '"') {
			const char *text = (const char *)json + i + 1;
			size_t start = ++i, size;

			while (i < length && json[i] != '"')
				i += json[i] == '\\' ? 2 : 1;
			if (i >= length)
				return;
			size = i - start;
			if (state == AFTER_COLON) {
				if (size > 0 && size < sizeof cni_version && strspn(text, "0123456789.") >= size) {
					memcpy(cni_version, text, size);
					cni_version[size] = '\0';
				}
				return;
			}
			state = depth == 1 && size == sizeof name - 1 && memcmp(text, name, size) == 0 ? AFTER_NAME : ELSEWHERE;
		} else if (c != ' ' && c != '\t' && c != '\n' && c != '\r') {
			state = c == ':' && state == AFTER_NAME ? AFTER_COLON : ELSEWHERE;
			if (c == '{' || c == '[')
				depth++;
			else if ((c == '}' || c == ']') && depth > 0)
				depth--;
		}
	}
}

/* Only CNI_* variables are sent: the rest of the runtime's environment may contain secrets. */
static size_t collect_environment(void)
{
	size_t length = 0;

	for (char **entry = environ; *entry; entry++) {
		size_t size = strlen(*entry) + 1;

		if (strncmp(*entry, "CNI_", 4) != 0)
			continue;
		if (size > sizeof environment - length)
			fail(CNI_ENVIRONMENT, "the CNI_* environment is longer than %d bytes", FIELD_LIMIT);
		memcpy(environment + length, *entry, size);
		length += size;
	}
	return length;
}

/* Does not wait: either an agent listens on the socket, or there is none. */
static int connect_agent(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	if (strlen(socket_path) >= sizeof address.sun_path)
		fail(CNI_ENVIRONMENT, "RIPSTOP_CNI_SOCKET is longer than the %zu bytes that a socket's path may have",
		     sizeof address.sun_path - 1);
	strcpy(address.sun_path, socket_path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) < 0)
		agent_away(strerror(errno));
	return fd;
}

static void send_all(int fd, const void *bytes, size_t length)
{
	const uint8_t *next = bytes;

	while (length > 0) {
		ssize_t sent = send(fd, next, length, MSG_NOSIGNAL);

		if (sent >= 0) {
			next += sent;
			length -= (size_t)sent;
		} else if (errno == EAGAIN) {
			if (!wait_ready(fd, POLLOUT))
				agent_away("it took too long to read the request");
		} else if (errno != EINTR) {
			connection_lost(errno);
		}
	}
}

static void receive_all(int fd, void *bytes, size_t length)
{
	uint8_t *next = bytes;

	while (length > 0) {
		ssize_t got = recv(fd, next, length, 0);

		if (got > 0) {
			next += got;
			length -= (size_t)got;
		} else if (got == 0) {
			connection_lost(0);
		} else if (errno == EAGAIN) {
			if (!wait_ready(fd, POLLIN))
				agent_away("it took too long to answer");
		} else if (errno != EINTR) {
			connection_lost(errno);
		}
	}
}

static void send_field(int fd, const uint8_t *bytes, size_t length)
{
	uint8_t prefix[4];

	put_be32(prefix, length);
	send_all(fd, prefix, sizeof prefix);
	send_all(fd, bytes, length);
}

static uint32_t be32(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* Send the request and print the answer. @return the exit code */
static int ask_agent(void)
{
	uint32_t exit_code, answer_length;
	uint8_t header[12];
	int fd = connect_agent();

	send_all(fd, MAGIC, 4);
	send_field(fd, environment, environment_length);
	send_field(fd, input, input_length);

	receive_all(fd, header, sizeof header);
	exit_code = be32(header + 4);
	answer_length = be32(header + 8);
	if (memcmp(header, MAGIC, 4) != 0 || answer_length > sizeof answer)
		agent_away("its answer is not of this plugin's version; install the plugin and the agent of one release");
	receive_all(fd, answer, answer_length);
	if (fwrite(answer, 1, answer_length, stdout) != answer_length || fflush(stdout) != 0)
		return 1;
	/* An exit code has only eight bits, and 256 must not become success. */
	return exit_code > 255 ? 1 : (int)exit_code;
}

/* Ask in another process, whose output nobody sees. */
static bool would_succeed(void)
{
	int status = 1;
	pid_t child = fork();

	if (child == 0)
		exit(freopen("/dev/null", "w", stdout) ? ask_agent() : 1);
	return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

static void wait_for_agent(void)
{
	const struct timespec pause = {.tv_nsec = ASK_EVERY_MS * 1000000L};
	int64_t until_ms = now_ms() + atoi(variable_or("RIPSTOP_CNI_PATIENCE_MS", DEFAULT_PATIENCE_MS));

	while (now_ms() < until_ms && !would_succeed())
		nanosleep(&pause, NULL);
}

int main(void)
{
	deadline_ms = now_ms() + DEADLINE_MS;
	command = getenv("CNI_COMMAND");
	socket_path = variable_or("RIPSTOP_CNI_SOCKET", DEFAULT_SOCKET);

	input_length = read_input();
	scan_version(input, input_length);
	if (is_command("VERSION")) {
		printf("{\"cniVersion\":\"%s\",\"supportedVersions\":" SUPPORTED_VERSIONS "}\n", cni_version);
		return 0;
	}
	environment_length = collect_environment();
	if (is_command("STATUS"))
		wait_for_agent();
	return ask_agent();
}
