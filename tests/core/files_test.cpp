#include "adder/core/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "adder/core/check.h"
#include "tests/error_of.h"

namespace adder::core {
namespace {
namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

std::string read(const fs::path& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "adder_files_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::set<std::string> names() const {
    std::set<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder_)) found.insert(entry.path().filename().string());
    return found;
  }

  fs::path folder_;
};

TEST_F(Files, MapsFilesOfAnySize) {
  for (const size_t size : {0, 1, 4095, 4096, 4097, 100000}) {
    std::string text(size, '\0');
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 31);
    write_file_atomically(folder_ / "x", text);
    EXPECT_EQ(read(folder_ / "x"), text);
  }
}

TEST_F(Files, MappingsMove) {
  write_file_atomically(folder_ / "x", "one");
  write_file_atomically(folder_ / "y", "other");
  MappedFile x(folder_ / "x");
  MappedFile moved(std::move(x));
  EXPECT_EQ(moved.bytes().size(), 3u);
  moved = MappedFile(folder_ / "y");
  EXPECT_EQ(moved.bytes().size(), 5u);
  // The mapping outlives the name.
  write_file_atomically(folder_ / "y", "replaced");
  EXPECT_EQ(static_cast<char>(moved.bytes()[0]), 'o');
}

TEST_F(Files, MappingErrorsNameThePath) {
  EXPECT_THAT(error_of([&] { MappedFile(folder_ / "none"); }),
              AllOf(HasSubstr((folder_ / "none").string()), HasSubstr("No such file or directory")));
  EXPECT_THAT(error_of([&] { MappedFile file(folder_); }), HasSubstr("it is a folder"));
  EXPECT_THAT(error_of([&] { MappedFile("/dev/null"); }), HasSubstr("not a regular file"));
}

TEST_F(Files, WritesAndReplacesWithoutLeftovers) {
  write_file_atomically(folder_ / "x", [](FileWriter& out) {
    out.write("a");
    out.write("");
    out.write("bc");
  });
  EXPECT_EQ(read(folder_ / "x"), "abc");
  write_file_atomically(folder_ / "x", "d");
  EXPECT_EQ(read(folder_ / "x"), "d");
  EXPECT_EQ(names(), std::set<std::string>{"x"});
}

TEST_F(Files, AThrowingWriterChangesNothing) {
  write_file_atomically(folder_ / "x", "old");
  EXPECT_THAT(error_of([&] {
                write_file_atomically(folder_ / "x", [](FileWriter& out) {
                  out.write("half");
                  fail("stopped");
                });
              }),
              "stopped");
  EXPECT_EQ(read(folder_ / "x"), "old");
  EXPECT_EQ(names(), std::set<std::string>{"x"});
}

TEST_F(Files, WriteErrorsNameThePath) {
  EXPECT_THAT(error_of([&] { write_file_atomically(folder_ / "no" / "x", "a"); }),
              AllOf(HasSubstr((folder_ / "no" / "x").string()), HasSubstr("No such file or directory")));
  EXPECT_THAT(error_of([&] { write_file_atomically(folder_, "a"); }), HasSubstr("it is a folder"));
  EXPECT_THAT(error_of([&] { write_file_atomically("/dev/full", "a"); }), HasSubstr("not a regular file"));
  EXPECT_THAT(error_of([&] { write_file_atomically(folder_ / "x" / "", "a"); }), HasSubstr("must end in the name"));
}

TEST_F(Files, AFullDiskIsNamed) {
  const std::string message = error_of([] {
    FileWriter out("/dev/full", "model.safetensors");
    out.write("a");
  });
  EXPECT_EQ(message, "cannot write 'model.safetensors' at byte 0: No space left on device");
}

// A limit on the size of files makes write() stop half-way, as a full disk does.
TEST_F(Files, AWriteThatStopsHalfWayLeavesTheOldFile) {
  write_file_atomically(folder_ / "x", "old");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{10000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = error_of([&] { write_file_atomically(folder_ / "x", std::string(20000, 'a')); });
  const std::string in_folder = error_of([&] {
    write_folder_atomically(folder_ / "new",
                            [](const fs::path& into) { write_file_atomically(into / "x", std::string(20000, 'a')); });
  });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(message, "cannot write '" + (folder_ / "x").string() + "' at byte 10000: File too large");
  EXPECT_THAT(in_folder, HasSubstr("File too large"));
  EXPECT_EQ(read(folder_ / "x"), "old");
  EXPECT_EQ(names(), std::set<std::string>{"x"});
}

TEST_F(Files, FoldersAppearWholeAndAreReplaced) {
  const fs::path path = folder_ / "step-1";
  write_folder_atomically(path, [&](const fs::path& into) {
    EXPECT_FALSE(fs::exists(path));
    fs::create_directory(into / "deep");
    write_file_atomically(into / "deep" / "x", "1");
    std::ofstream(into / "y") << "2";
  });
  EXPECT_EQ(read(path / "deep" / "x") + read(path / "y"), "12");
  write_folder_atomically(path, [&](const fs::path& into) {
    EXPECT_EQ(read(path / "y"), "2");
    write_file_atomically(into / "z", "3");
  });
  EXPECT_EQ(read(path / "z"), "3");
  EXPECT_FALSE(fs::exists(path / "y"));
  EXPECT_EQ(names(), std::set<std::string>{"step-1"});
}

TEST_F(Files, AThrowingFillLeavesTheOldFolder) {
  const fs::path path = folder_ / "step-1";
  write_folder_atomically(path, [](const fs::path& into) { write_file_atomically(into / "x", "old"); });
  EXPECT_EQ(error_of([&] {
              write_folder_atomically(path, [](const fs::path& into) {
                write_file_atomically(into / "x", "new");
                fail("stopped");
              });
            }),
            "stopped");
  EXPECT_EQ(read(path / "x"), "old");
  EXPECT_EQ(names(), std::set<std::string>{"step-1"});
  write_file_atomically(folder_ / "file", "a");
  EXPECT_THAT(error_of([&] { write_folder_atomically(folder_ / "file", [](const fs::path&) {}); }),
              HasSubstr("not a folder"));
}

TEST_F(Files, RemovesFolders) {
  write_folder_atomically(folder_ / "a", [](const fs::path& into) { write_file_atomically(into / "x", "1"); });
  remove_folder_atomically(folder_ / "a");
  EXPECT_TRUE(names().empty());
  EXPECT_THAT(error_of([&] { remove_folder_atomically(folder_ / "a"); }), HasSubstr("No such file or directory"));
}

TEST_F(Files, CleansWhatKilledWritersLeave) {
  const auto make = [&](const std::string& name) {
    fs::create_directory(folder_ / name);
    std::ofstream(folder_ / name / "x") << name;
  };
  make("a");
  make(".a.tmp-0123456789abcdef");
  make(".a.old-0123456789abcdef");  // replaced, not yet removed
  make(".b.tmp-0123456789abcdef");
  make(".b.old-0123456789abcdef");  // put aside, never replaced
  make(".c.old-0123456789abcdeg");  // not ours
  make(".tmp-0123456789abcdef");    // no name before the mark
  make("d.tmp-0123456789abcdef");   // no dot before the name
  std::ofstream(folder_ / ".e.json.tmp-0123456789abcdef") << "half";
  std::ofstream(folder_ / ".lock") << "1";
  clean_leftovers(folder_);
  EXPECT_EQ(names(), (std::set<std::string>{"a", "b", ".c.old-0123456789abcdeg", ".tmp-0123456789abcdef",
                                            "d.tmp-0123456789abcdef", ".lock"}));
  EXPECT_EQ(read(folder_ / "b" / "x"), ".b.old-0123456789abcdef");
  EXPECT_THAT(error_of([&] { clean_leftovers(folder_ / "none"); }), HasSubstr("No such file or directory"));
}

// A process that replaces one folder over and over is killed at random moments: what is found afterwards is one whole
// version, and no older than the last one that it reported as written.
TEST_F(Files, AKilledWriterLeavesAWholeFolder) {
  const fs::path path = folder_ / "checkpoint";
  const auto fill = [](int64_t version) {
    return [version](const fs::path& into) {
      for (const char* name : {"model", "optimizer", "state"}) {
        write_file_atomically(into / name, std::string(static_cast<size_t>(1000 + version), 'v'));
      }
    };
  };
  write_folder_atomically(path, fill(0));
  std::mt19937 random(1);
  int64_t version = 0;
  for (int round = 0; round < 30; ++round) {
    int reports[2];
    ASSERT_EQ(::pipe(reports), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t next = version + 1;; ++next) {
        write_folder_atomically(path, fill(next));
        if (::write(reports[1], &next, sizeof(next)) != sizeof(next)) ::_exit(1);
      }
    }
    ::close(reports[1]);
    int64_t reported = 0;
    ASSERT_EQ(::read(reports[0], &reported, sizeof(reported)), static_cast<ssize_t>(sizeof(reported)));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    while (::read(reports[0], &reported, sizeof(reported)) == sizeof(reported)) {
    }
    ::close(reports[0]);

    clean_leftovers(folder_);
    EXPECT_EQ(names(), std::set<std::string>{"checkpoint"});
    const std::string model = read(path / "model");
    version = static_cast<int64_t>(model.size()) - 1000;
    EXPECT_GE(version, reported);
    EXPECT_EQ(read(path / "optimizer"), model);
    EXPECT_EQ(read(path / "state"), model);
  }
}

TEST_F(Files, ASecondHolderOfAFolderIsToldWhoHoldsIt) {
  {
    const FolderLock lock(folder_);
    EXPECT_EQ(error_of([&] { FolderLock second(folder_); }),
              folder_.string() + ": in use by another run (pid " + std::to_string(::getpid()) + ")");
  }
  const FolderLock again(folder_);
  EXPECT_THAT(error_of([&] { FolderLock lock(folder_ / "none"); }), HasSubstr("No such file or directory"));
}

TEST_F(Files, DeathReleasesTheLock) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const FolderLock lock(folder_);
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_THAT(error_of([&] { FolderLock lock(folder_); }), HasSubstr("(pid " + std::to_string(child) + ")"));
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(error_of([&] { FolderLock lock(folder_); }), "no error");
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace adder::core
