// Asio, as every file here must see it: include this and not Asio's own headers.
//
// Whether Asio takes its memory from aligned_alloc or from operator new depends on which standard
// header came first, so two files could disagree and free what the other one made.
#pragma once

#define ASIO_DISABLE_STD_ALIGNED_ALLOC

#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/ip/v6_only.hpp>
#include <asio/post.hpp>
#include <asio/read.hpp>
#include <asio/steady_timer.hpp>
#include <asio/write.hpp>
