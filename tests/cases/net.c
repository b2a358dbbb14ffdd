/* LD_PRELOAD: a line in $NETLOG for every name that is looked up and every connection over the internet protocols. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *call, const char *what) {
  const char *path = getenv("NETLOG");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "%s %s\n", call, what ? what : "?");
  fclose(file);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  int (*original)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  note("getaddrinfo", name);
  return original(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
  struct hostent *(*original)(const char *) = dlsym(RTLD_NEXT, "gethostbyname");
  note("gethostbyname", name);
  return original(name);
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
  int (*original)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  char shown[INET6_ADDRSTRLEN] = "?";
  if (address->sa_family == AF_INET)
    inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, shown, sizeof shown);
  if (address->sa_family == AF_INET6)
    inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, shown, sizeof shown);
  if (address->sa_family == AF_INET || address->sa_family == AF_INET6) note("connect", shown);
  return original(socket, address, length);
}
