/* Neighbor Discovery and ARP load: an upstream router that asks (closed loop with a window, or paced), and a
 * downstream host that owns many addresses and answers.  Either or both in one process, which never sleeps:
 * give it a core of its own.  The address of the first target says which: IPv6 by Neighbor Discovery, IPv4
 * by ARP.
 *
 * Received frames are read from memory shared with the kernel (PACKET_RX_RING), without system calls; sent
 * ones go out in batches (sendmmsg).  Every advertisement is checked before it counts.  The last line on
 * stdout is one JSON object.
 *
 *   generator --ask IF --first ADDR --targets N [--window W | --rate R] [--seconds S] [--once] ...
 *   generator --respond IF --first ADDR --targets N [--seconds S]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	FRAME_SIZE = 256, /* of a slot in the ring: its header takes 82 octets of it */
	BLOCK_SIZE = 1 << 16,
	BLOCKS = 64,
	SLOTS = BLOCKS * (BLOCK_SIZE / FRAME_SIZE),
	BATCH = 64,
	ETHERNET = 14,
	IPV6 = 40,
	ND = ETHERNET + IPV6,
	LENGTH = ND + 32, /* a solicitation or advertisement with one link-layer option */
	DAD_LENGTH = ND + 24,
	SOLICITATION = 135,
	ADVERTISEMENT = 136,
	ARP_LENGTH = ETHERNET + 28,
	REQUEST = 1,
	REPLY = 2,
	/* Where the fields of an ARP packet are (RFC 826). */
	OPERATION = ETHERNET + 7,
	SENDER_MAC = ETHERNET + 8,
	SENDER = ETHERNET + 14,
	TARGET_MAC = ETHERNET + 18,
	TARGET = ETHERNET + 24,
};

struct port {
	int fd;
	uint8_t mac[6];
	uint8_t *ring;
	unsigned slot;
	unsigned queued;
	uint8_t out[BATCH][LENGTH];
	struct iovec vectors[BATCH];
	struct mmsghdr messages[BATCH];
	uint64_t sent;
};

struct target {
	uint64_t sent_at;    /* of the latest question */
	uint32_t waiting;    /* questions not answered yet */
};

static struct port asker, host;
static bool asking, responding, arp;
/* IPv4 addresses are IPv4-mapped IPv6 addresses here: the last four octets count. */
static uint8_t first[16], source[16], proxy_mac[6], expected_mac[6];
static bool unicast, expect_mac, verify_checksum;
static uint32_t targets = 1000;
static struct target *table;
static volatile sig_atomic_t stopping;

static uint64_t answered, extra, wrong, served, flag_r, flag_o, first_at;
static uint32_t *samples;
static size_t sample_count, sample_room;

static void die(const char *what)
{
	fprintf(stderr, "generator: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The checksum field that makes the message right; 0 when it holds one that is. */
static uint16_t checksum(const uint8_t *frame, size_t length)
{
	uint64_t sum = (length - ND) + 58;
	uint16_t word;
	for (size_t i = ETHERNET + 8; i + 1 < length; i += 2) {
		memcpy(&word, frame + i, 2);
		sum += ntohs(word);
	}
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

static void open_port(struct port *port, const char *name)
{
	/* IPv6, ICMPv6, type 135 or 136. */
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETHERNET + 6),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 58, 0, 4),
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ND),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOLICITATION, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ADVERTISEMENT, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0xffff),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog filter = {sizeof code / sizeof *code, code};
	struct tpacket_req ring = {BLOCK_SIZE, BLOCKS, FRAME_SIZE, SLOTS};
	int version = TPACKET_V2;
	struct ifreq request = {0};

	port->fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (port->fd < 0)
		die("socket");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(port->fd, SIOCGIFHWADDR, &request) < 0)
		die(name);
	memcpy(port->mac, request.ifr_hwaddr.sa_data, 6);
	struct packet_mreq all = {(int)if_nametoindex(name), PACKET_MR_ALLMULTI, 0, {0}};
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(arp ? ETH_P_ARP : ETH_P_IPV6),
		.sll_ifindex = (int)if_nametoindex(name),
	};
	if ((!arp && setsockopt(port->fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) < 0) ||
	    setsockopt(port->fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) < 0 ||
	    setsockopt(port->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) < 0 ||
	    setsockopt(port->fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring) < 0)
		die("packet socket");
	port->ring = mmap(NULL, (size_t)BLOCKS * BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, port->fd, 0);
	if (port->ring == MAP_FAILED)
		die("mmap");
	if (bind(port->fd, (struct sockaddr *)&address, sizeof address) < 0)
		die("bind");
	for (unsigned i = 0; i < BATCH; i++) {
		port->vectors[i] = (struct iovec){port->out[i], arp ? ARP_LENGTH : LENGTH};
		port->messages[i].msg_hdr.msg_iov = &port->vectors[i];
		port->messages[i].msg_hdr.msg_iovlen = 1;
	}
}

static void flush(struct port *port)
{
	unsigned done = 0;
	while (done < port->queued) {
		int count = sendmmsg(port->fd, port->messages + done, port->queued - done, 0);
		if (count < 0) {
			if (errno == EAGAIN || errno == ENOBUFS || errno == EINTR)
				continue;
			die("send");
		}
		done += (unsigned)count;
	}
	port->sent += done;
	port->queued = 0;
}

/* A frame to fill in; it leaves with the next flush. */
static uint8_t *queue(struct port *port)
{
	if (port->queued == BATCH)
		flush(port);
	return port->out[port->queued++];
}

static void header(uint8_t *frame, const uint8_t *to, const uint8_t *from)
{
	static const uint8_t fixed[] = {0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255};
	memcpy(frame, to, 6);
	memcpy(frame + 6, from, 6);
	memcpy(frame + 12, fixed, sizeof fixed);
}

static void address_of(uint32_t index, uint8_t *address)
{
	uint32_t low;
	memcpy(address, first, 16);
	memcpy(&low, first + 12, 4);
	low = htonl(ntohl(low) + index);
	memcpy(address + 12, &low, 4);
}

/* The index of an address, or `targets` when it is not one of ours. */
static uint32_t index_of(const uint8_t *address)
{
	uint32_t low, base;
	if (memcmp(address, first, 12) != 0)
		return targets;
	memcpy(&low, address + 12, 4);
	memcpy(&base, first + 12, 4);
	low = ntohl(low) - ntohl(base);
	return low < targets ? low : targets;
}

/* An ARP packet from `from`, which is at the port's link-layer address. */
static void arp_packet(struct port *port, uint8_t operation, const uint8_t *to_mac, const uint8_t *from,
                       const uint8_t *target_mac, const uint8_t *target)
{
	static const uint8_t fixed[] = {0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0};
	uint8_t *frame = queue(port);

	memcpy(frame, to_mac, 6);
	memcpy(frame + 6, port->mac, 6);
	memcpy(frame + 12, fixed, sizeof fixed);
	frame[OPERATION] = operation;
	memcpy(frame + SENDER_MAC, port->mac, 6);
	memcpy(frame + SENDER, from, 4);
	memcpy(frame + TARGET_MAC, target_mac, 6);
	memcpy(frame + TARGET, target, 4);
}

static void request(uint32_t index)
{
	static const uint8_t unknown[6], everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	uint8_t target[16];

	address_of(index, target);
	arp_packet(&asker, REQUEST, unicast ? proxy_mac : everybody, source + 12, unknown, target + 12);
}

/* The owner's answer to a request, out of `port`. */
static void reply(struct port *port, const uint8_t *asked)
{
	const uint8_t *mac = asked + SENDER_MAC;
	arp_packet(port, REPLY, mac, asked + TARGET, mac, asked + SENDER);
}

static void solicit(uint32_t index)
{
	static const uint8_t group[13] = {0xff, 2, [11] = 1, [12] = 0xff};
	uint8_t *frame = queue(&asker), target[16], to[6] = {0x33, 0x33, 0xff};

	address_of(index, target);
	memcpy(to + 3, target + 13, 3);
	header(frame, unicast ? proxy_mac : to, asker.mac);
	memcpy(frame + 22, source, 16);
	memcpy(frame + 38, target, 16);
	if (!unicast)
		memcpy(frame + 38, group, 13);
	memset(frame + ND, 0, 8);
	frame[ND] = SOLICITATION;
	memcpy(frame + ND + 8, target, 16);
	frame[ND + 24] = 1;
	frame[ND + 25] = 1;
	memcpy(frame + ND + 26, asker.mac, 6);
	uint16_t sum = checksum(frame, LENGTH);
	memcpy(frame + ND + 2, &sum, 2);
}

static void ask_for(uint32_t index, uint64_t now)
{
	if (arp)
		request(index);
	else
		solicit(index);
	table[index].sent_at = now;
	table[index].waiting++;
}

/* The owner's answer to a solicitation, out of `port`. */
static void advertise(struct port *port, const uint8_t *asked)
{
	static const uint8_t all_nodes[16] = {0xff, 2, [15] = 1}, all_nodes_mac[6] = {0x33, 0x33, [5] = 1};
	static const uint8_t unspecified[16];
	bool probe = memcmp(asked + 22, unspecified, 16) == 0;
	uint8_t *frame = queue(port);

	header(frame, probe ? all_nodes_mac : asked + 6, port->mac);
	memcpy(frame + 22, asked + ND + 8, 16);
	memcpy(frame + 38, probe ? all_nodes : asked + 22, 16);
	memset(frame + ND, 0, 8);
	frame[ND] = ADVERTISEMENT;
	frame[ND + 4] = probe ? 0x20 : 0x60;
	memcpy(frame + ND + 8, asked + ND + 8, 16);
	frame[ND + 24] = 2;
	frame[ND + 25] = 1;
	memcpy(frame + ND + 26, port->mac, 6);
	uint16_t sum = checksum(frame, LENGTH);
	memcpy(frame + ND + 2, &sum, 2);
}

/* Why an advertisement that reached the asker is wrong, or NULL. */
static const char *defect(const uint8_t *frame, size_t length)
{
	if (length < LENGTH || frame[18] || frame[19] != 32)
		return "not 32 octets of ICMPv6: no link-layer option, or more";
	if (memcmp(frame, asker.mac, 6) != 0)
		return "not sent to the asker's link-layer address";
	if (memcmp(frame + 38, source, 16) != 0)
		return "not sent to the asker's address";
	if (frame[21] != 255)
		return "hop limit is not 255";
	if (frame[ND + 1])
		return "code is not 0";
	if (!(frame[ND + 4] & 0x40))
		return "S flag is not set";
	if (frame[ND + 24] != 2 || frame[ND + 25] != 1)
		return "no target link-layer option";
	if (memcmp(frame + ND + 26, expect_mac ? expected_mac : frame + 6, 6) != 0)
		return "wrong target link-layer address";
	if (verify_checksum && checksum(frame, LENGTH) != 0)
		return "wrong checksum";
	return NULL;
}

/* The same for an ARP reply. */
static const char *arp_defect(const uint8_t *frame)
{
	static const uint8_t fixed[] = {0, 1, 0x08, 0, 6, 4, 0, REPLY};
	if (memcmp(frame + ETHERNET, fixed, sizeof fixed) != 0)
		return "not a reply of Ethernet and IPv4";
	if (memcmp(frame, asker.mac, 6) != 0)
		return "not sent to the asker's link-layer address";
	if (memcmp(frame + TARGET_MAC, asker.mac, 6) != 0 || memcmp(frame + TARGET, source + 12, 4) != 0)
		return "the target is not the asker";
	if (memcmp(frame + SENDER_MAC, expect_mac ? expected_mac : frame + 6, 6) != 0)
		return "wrong sender link-layer address";
	return NULL;
}

static void take_sample(uint64_t latency)
{
	if (sample_count < sample_room)
		samples[sample_count++] = latency > UINT32_MAX ? UINT32_MAX : (uint32_t)latency;
}

/* The index of the four octets of an IPv4 address, or `targets` when it is not one of ours. */
static uint32_t index_of4(const uint8_t *address)
{
	uint8_t mapped[16] = {[10] = 0xff, [11] = 0xff};
	memcpy(mapped + 12, address, 4);
	return index_of(mapped);
}

/* An answer to the asker, which is wrong for that reason, if for any; true when somebody waited for it. */
static bool counts(uint32_t index, const char *reason, uint64_t now)
{
	if (index == targets)
		reason = "target was never asked for";
	if (reason) {
		if (wrong++ < 5)
			fprintf(stderr, "generator: wrong answer: %s\n", reason);
		return false;
	}
	struct target *target = &table[index];
	if (!target->waiting) {
		extra++;
		return false;
	}
	target->waiting--;
	take_sample(now - target->sent_at);
	if (!answered++)
		first_at = now;
	return true;
}

/* One frame for the asker; true when it answered a question.  Who wants to send to the asker looks for it
 * first, as the proxy's kernel does. */
static bool heard(const uint8_t *frame, size_t length, uint64_t now)
{
	if (arp) {
		if (length < ARP_LENGTH)
			return false;
		if (frame[OPERATION] == REQUEST) {
			if (memcmp(frame + TARGET, source + 12, 4) == 0)
				reply(&asker, frame);
			return false;
		}
		return counts(index_of4(frame + SENDER), arp_defect(frame), now);
	}
	if (length < DAD_LENGTH)
		return false;
	if (frame[ND] == SOLICITATION) {
		if (memcmp(frame + ND + 8, source, 16) == 0)
			advertise(&asker, frame);
		return false;
	}
	static const uint8_t all_routers_mac[6] = {0x33, 0x33, [5] = 2};
	if (memcmp(frame, all_routers_mac, 6) == 0)
		return false; /* news of a host (RFC 9131), no answer */
	if (!counts(index_of(frame + ND + 8), defect(frame, length), now))
		return false;
	flag_r += frame[ND + 4] >> 7;
	flag_o += frame[ND + 4] >> 5 & 1;
	return true;
}

static void served_one(const uint8_t *frame, size_t length)
{
	if (arp) {
		if (length < ARP_LENGTH || frame[OPERATION] != REQUEST || index_of4(frame + TARGET) == targets)
			return;
		reply(&host, frame);
	} else {
		if (length < DAD_LENGTH || frame[ND] != SOLICITATION || index_of(frame + ND + 8) == targets)
			return;
		advertise(&host, frame);
	}
	served++;
}

/* Read what has arrived; how many questions of ours it answered. */
static unsigned drain(struct port *port)
{
	unsigned hits = 0;
	for (unsigned i = 0; i < SLOTS; i++) {
		struct tpacket2_hdr *slot = (struct tpacket2_hdr *)(port->ring + (size_t)port->slot * FRAME_SIZE);
		if (!(__atomic_load_n(&slot->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
			break;
		const uint8_t *frame = (uint8_t *)slot + slot->tp_mac;
		if (port == &asker)
			hits += heard(frame, slot->tp_snaplen, now_ns());
		else
			served_one(frame, slot->tp_snaplen);
		__atomic_store_n(&slot->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
		port->slot = (port->slot + 1) % SLOTS;
	}
	return hits;
}

static void serve(void)
{
	if (!responding)
		return;
	drain(&host);
	flush(&host);
}

static unsigned listen_up(void)
{
	unsigned hits = drain(&asker);
	flush(&asker);
	serve();
	return hits;
}

static uint32_t stride_for(uint32_t count)
{
	/* Near the golden section, so that neighbors in time are none in the table; prime to `count`. */
	uint32_t stride = (uint32_t)(count * 0.6180339887) | 1;
	for (;; stride += 2) {
		uint32_t a = stride, b = count;
		while (b) {
			uint32_t rest = a % b;
			a = b;
			b = rest;
		}
		if (a == 1)
			return stride % count ? stride % count : 1;
	}
}

struct pending {
	uint32_t index;
	uint64_t sent_at;
};

/* Keep `window` questions on the way until time is up or, with `once`, every target had its turn. */
static uint64_t closed_loop(uint32_t window, uint64_t deadline, uint64_t timeout, bool once, uint64_t *lost)
{
	/* Oldest first; those answered are skipped when they come to the head. */
	uint64_t sent = 0, head = 0, tail = 0, room = (uint64_t)targets + window + 1;
	uint32_t out = 0, step = once ? 1 : stride_for(targets), next = 0;
	struct pending *order = calloc(room, sizeof *order);
	if (!order)
		die("memory");
	while (!stopping) {
		uint64_t now = now_ns();
		if (now >= deadline)
			break;
		while (out < window && !(once && sent == targets) && tail - head < room) {
			if (table[next].waiting)
				break;
			ask_for(next, now);
			order[tail++ % room] = (struct pending){next, now};
			next = (uint32_t)(((uint64_t)next + step) % targets);
			sent++;
			out++;
		}
		flush(&asker);
		out -= listen_up();
		while (head < tail) {
			struct pending *oldest = &order[head % room];
			struct target *target = &table[oldest->index];
			if (target->waiting && target->sent_at == oldest->sent_at) {
				if (now < oldest->sent_at + timeout)
					break;
				target->waiting = 0;
				(*lost)++;
				out--;
			}
			head++;
		}
		if (once && sent == targets && !out)
			break;
	}
	free(order);
	return sent;
}

/* Send at `rate` a second whatever comes back, then wait `timeout` for the rest. */
static uint64_t open_loop(double rate, uint64_t deadline, uint64_t timeout)
{
	uint64_t sent = 0, started = now_ns(), now;
	uint32_t step = stride_for(targets), next = 0;
	while (!stopping && (now = now_ns()) < deadline) {
		uint64_t due = (uint64_t)((double)(now - started) * rate / 1e9);
		while (sent < due) {
			ask_for(next, now);
			next = (uint32_t)(((uint64_t)next + step) % targets);
			sent++;
		}
		flush(&asker);
		listen_up();
	}
	for (now = now_ns(); !stopping && answered < sent && now_ns() < now + timeout;)
		listen_up();
	return sent;
}

static int ascending(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static double percentile(double share)
{
	if (!sample_count)
		return 0;
	size_t at = (size_t)((double)(sample_count - 1) * share);
	return samples[at] / 1e3;
}

static unsigned dropped(struct port *port)
{
	struct tpacket_stats stats = {0};
	socklen_t size = sizeof stats;
	getsockopt(port->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size);
	return stats.tp_drops;
}

static void parse_mac(const char *text, uint8_t *mac)
{
	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6) {
		fprintf(stderr, "generator: not a link-layer address: %s\n", text);
		exit(64);
	}
}

static void parse_address(const char *text, uint8_t *address)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
	if (inet_pton(AF_INET6, text, address) == 1)
		return;
	if (inet_pton(AF_INET, text, address + 12) != 1) {
		fprintf(stderr, "generator: not an address: %s\n", text);
		exit(64);
	}
	memcpy(address, mapped, sizeof mapped);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"ask", required_argument, 0, 'a'},      {"respond", required_argument, 0, 'r'},
		{"first", required_argument, 0, 'f'},    {"targets", required_argument, 0, 'n'},
		{"window", required_argument, 0, 'w'},   {"rate", required_argument, 0, 'R'},
		{"seconds", required_argument, 0, 's'},  {"timeout", required_argument, 0, 't'},
		{"source", required_argument, 0, 'S'},   {"unicast", required_argument, 0, 'u'},
		{"expect", required_argument, 0, 'e'},   {"once", no_argument, 0, 'o'},
		{"checksum", no_argument, 0, 'c'},       {0, 0, 0, 0},
	};
	uint32_t window = 1;
	double rate = 0, seconds = 10, timeout_seconds = 1;
	bool once = false;
	const char *ask = NULL, *respond = NULL;

	parse_address("2001:db8:7::1000", first);
	parse_address("fe80::a", source);
	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		switch (option) {
		case 'a': ask = optarg; break;
		case 'r': respond = optarg; break;
		case 'f': parse_address(optarg, first); break;
		case 'n': targets = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'w': window = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'R': rate = strtod(optarg, NULL); break;
		case 's': seconds = strtod(optarg, NULL); break;
		case 't': timeout_seconds = strtod(optarg, NULL); break;
		case 'S': parse_address(optarg, source); break;
		case 'u': unicast = true; parse_mac(optarg, proxy_mac); break;
		case 'e': expect_mac = true; parse_mac(optarg, expected_mac); break;
		case 'o': once = true; break;
		case 'c': verify_checksum = true; break;
		default: return 64;
		}
	}
	if ((!ask && !respond) || !targets || !window || targets > 1u << 24) {
		fprintf(stderr, "generator: --ask or --respond, and targets and window above 0, are needed\n");
		return 64;
	}
	arp = IN6_IS_ADDR_V4MAPPED((struct in6_addr *)first);
	if (arp != IN6_IS_ADDR_V4MAPPED((struct in6_addr *)source)) {
		fprintf(stderr, "generator: --first and --source must be of one family\n");
		return 64;
	}
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	if (window > targets)
		window = targets;
	table = calloc(targets, sizeof *table);
	sample_room = 1u << 23;
	samples = ask ? malloc(sample_room * sizeof *samples) : NULL;
	if (!table || (ask && !samples))
		die("memory");
	if ((asking = ask != NULL))
		open_port(&asker, ask);
	if ((responding = respond != NULL))
		open_port(&host, respond);
	printf("ready\n");
	fflush(stdout);

	uint64_t started = now_ns(), deadline = started + (uint64_t)(seconds * 1e9);
	uint64_t timeout = (uint64_t)(timeout_seconds * 1e9), sent = 0, lost = 0;
	if (!asking)
		while (!stopping && now_ns() < deadline)
			serve();
	else if (rate > 0)
		sent = open_loop(rate, deadline, timeout);
	else
		sent = closed_loop(window, deadline, timeout, once, &lost);
	uint64_t took = now_ns() - started;
	if (rate > 0)
		lost = sent - answered;
	qsort(samples, sample_count, sizeof *samples, ascending);
	printf("{\"seconds\": %.6f, \"sent\": %llu, \"answered\": %llu, \"lost\": %llu, \"wrong\": %llu, "
	       "\"extra\": %llu, \"served\": %llu, \"router_flag\": %llu, \"override_flag\": %llu, "
	       "\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"first_answer_at\": %.6f, "
	       "\"started_at\": %.6f, \"dropped\": %u}\n",
	       (double)took / 1e9, (unsigned long long)sent, (unsigned long long)answered,
	       (unsigned long long)lost, (unsigned long long)wrong, (unsigned long long)extra,
	       (unsigned long long)served, (unsigned long long)flag_r, (unsigned long long)flag_o,
	       percentile(0.5), percentile(0.99), percentile(1.0), (double)first_at / 1e9,
	       (double)started / 1e9, (asking ? dropped(&asker) : 0) + (responding ? dropped(&host) : 0));
	return wrong ? 1 : 0;
}
