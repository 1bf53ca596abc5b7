/*
 * The plainest tunnel there is, in C: what Flannel's udp backend does, to compare with.
 *
 *     packet_loop DEVICE LOCAL PEER
 *
 * It waits for the TUN device and the socket, and moves one packet at a time, each with two system
 * calls, between DEVICE and UDP port 8285 of PEER, with the TTL decremented. One peer, IPv4 without
 * options, nothing checked.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORT = 8285, VNET_HEADER = 10, ROOM = 65536 };

static int attach(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	return fd < 0 || ioctl(fd, TUNSETIFF, &request) ? -1 : fd;
}

static int place(const char *text, struct sockaddr_in *address)
{
	*address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(PORT) };
	return inet_pton(AF_INET, text, &address->sin_addr) == 1;
}

static void decrement_ttl(unsigned char *packet)
{
	unsigned int check = (packet[10] << 8 | packet[11]) + 0x100;

	packet[8]--;
	check = (check & 0xffff) + (check >> 16);
	packet[10] = check >> 8;
	packet[11] = check;
}

int main(int argc, char **argv)
{
	static unsigned char buffer[VNET_HEADER + ROOM];
	static const unsigned char plain[VNET_HEADER];
	unsigned char *packet = buffer + VNET_HEADER;
	struct sockaddr_in local, peer;
	int udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	int tun = argc == 4 ? attach(argv[1]) : -1;

	if (tun < 0 || !place(argv[2], &local) || !place(argv[3], &peer) ||
	    bind(udp, (struct sockaddr *)&local, sizeof local)) {
		perror("packet_loop DEVICE LOCAL PEER");
		return 1;
	}
	for (;;) {
		struct pollfd both[] = { { tun, POLLIN, 0 }, { udp, POLLIN, 0 } };
		ssize_t out, in;

		poll(both, 2, -1);
		do {
			out = read(tun, buffer, sizeof buffer);
			if (out > VNET_HEADER) {
				decrement_ttl(packet);
				sendto(udp, packet, out - VNET_HEADER, 0,
				       (struct sockaddr *)&peer, sizeof peer);
			}
			in = recv(udp, packet, ROOM, 0);
			if (in > 0) {
				decrement_ttl(packet);
				memcpy(buffer, plain, VNET_HEADER);
				if (write(tun, buffer, VNET_HEADER + in) < 0)
					perror("write");
			}
		} while (out > 0 || in > 0);
	}
}
