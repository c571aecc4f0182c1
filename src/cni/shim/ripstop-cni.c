// SPDX-License-Identifier: Apache-2.0
/*
 * ripstop-cni: the CNI plugin that the container runtime executes on the host.
 *
 * It decides nothing. It hands its CNI_* environment and its standard input to the ripstop agent over a unix socket
 * and prints the agent's answer; the framing is described in src/cni/protocol.ts. Written in C and linked statically
 * because hosts have no Node, and because a runtime starts it several times for every pod.
 *
 * It answers by itself only what must work without an agent: VERSION, and the error that says that the agent is away
 * (code 11 "try again later", or code 50 "not available" to STATUS). What happens when is simple enough to need no
 * heap: two static buffers of the largest size the framing allows, touched only as far as they are filled.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/ripstop/cni.sock"
#define SUPPORTED_VERSIONS "[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]"
#define DEFAULT_VERSION "1.0.0"
#define MAGIC "RSC1"
#define FIELD_LIMIT (1024 * 1024)

/* From start to answer. Runtimes wait longer (containerd and kubelet: minutes); tests build with less. */
#ifndef DEADLINE_MS
#define DEADLINE_MS 60000
#endif

/* Codes of the CNI specification, "Well-known error codes". */
enum cni_code {
	CNI_ENVIRONMENT = 4,
	CNI_IO = 5,
	CNI_DECODE = 6,
	CNI_TRY_AGAIN = 11,
	CNI_NOT_AVAILABLE = 50,
};

static uint8_t input[FIELD_LIMIT];       /* standard input; once sent, the agent's answer */
static uint8_t environment[FIELD_LIMIT]; /* KEY=VALUE\0 of every CNI_* variable */
static const char *command;
static const char *socket_path;
static char cni_version[16] = DEFAULT_VERSION;
static int64_t deadline_ms;

/* Text as the inside of a JSON string. A byte beyond ASCII (a path may hold any) becomes U+FFFD, so that the output is
 * valid UTF-8 whatever comes in. */
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

__attribute__((noreturn)) static void agent_away(const char *why)
{
	bool status = command && strcmp(command, "STATUS") == 0;

	fail(status ? CNI_NOT_AVAILABLE : CNI_TRY_AGAIN,
	     "the ripstop agent gave no answer at %s: %s; see that the agent runs on this node and what its log says",
	     socket_path, why);
}

/* After a send or receive that failed for good. */
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

/* Whether the file became ready before the deadline. Errors count as ready: the read or write that follows names them. */
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
 * Copy the value of the top level's "cniVersion" into cni_version; leave that as it is when there is none, or one that
 * is not made of digits and dots. This is no JSON parser: it follows strings and nesting and nothing else, which is
 * just enough to mistake neither a prevResult's version nor text inside a string for the configuration's own.
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

/* Only CNI_* goes over: the rest of a runtime's environment may hold secrets, and is nobody's business. */
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

/* Never waits: the socket is there and served, or the agent is away. */
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
	const uint8_t prefix[4] = {(uint8_t)(length >> 24), (uint8_t)(length >> 16), (uint8_t)(length >> 8),
				   (uint8_t)length};

	send_all(fd, prefix, sizeof prefix);
	send_all(fd, bytes, length);
}

static uint32_t be32(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

int main(void)
{
	const char *override = getenv("RIPSTOP_CNI_SOCKET");
	size_t input_length, environment_length;
	uint32_t exit_code, answer_length;
	uint8_t header[12];
	int fd;

	deadline_ms = now_ms() + DEADLINE_MS;
	command = getenv("CNI_COMMAND");
	socket_path = override && *override ? override : DEFAULT_SOCKET;

	input_length = read_input();
	scan_version(input, input_length);
	if (command && strcmp(command, "VERSION") == 0) {
		printf("{\"cniVersion\":\"%s\",\"supportedVersions\":" SUPPORTED_VERSIONS "}\n", cni_version);
		return 0;
	}
	environment_length = collect_environment();

	fd = connect_agent();
	send_all(fd, MAGIC, 4);
	send_field(fd, environment, environment_length);
	send_field(fd, input, input_length);

	receive_all(fd, header, sizeof header);
	exit_code = be32(header + 4);
	answer_length = be32(header + 8);
	if (memcmp(header, MAGIC, 4) != 0 || answer_length > sizeof input)
		agent_away("its answer is not of this plugin's version; install the plugin and the agent of one release");
	receive_all(fd, input, answer_length);
	if (fwrite(input, 1, answer_length, stdout) != answer_length || fflush(stdout) != 0)
		return 1;
	/* A process has only eight bits to say it with, and 256 must not become success. */
	return exit_code > 255 ? 1 : (int)exit_code;
}
